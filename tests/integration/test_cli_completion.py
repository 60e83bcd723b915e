"""What a shell completes, in a real bash, and by the protocol of the others."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import perf_counter

import pytest
from click.testing import CliRunner

from cli.completing import AGENTS, BACKENDS
from cli.main import cli
from messages.templates import AGENT_PRESETS, SUPPORTED_BACKENDS
from tests.support.cli import PROGRAM, ROOT
from tests.support.port import http_server
from tests.support.terminal import Terminal

TOKEN = "tr-some-token"
TASKS = [
    {"id": "t-one", "status": "running", "prompt": "first\nline\x1b[2J"},
    {"id": "t-two", "status": "completed", "prompt": "second"},
]


@contextmanager
def service(*, answers: bool = True) -> Iterator[str]:
    """A service that knows two tasks and a template, or one that never answers."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not answers:
                asked.wait()
            path, _, query = self.path.partition("?")
            status = query.partition("status=")[2]
            found = {
                "/api/tasks": {"tasks": [task for task in TASKS if status in {"", task["status"]}]},
                "/api/templates": {"templates": [{"name": "from-the-service"}], "broken": {}},
            }
            self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
            with contextlib.suppress(BrokenPipeError):  # who asked has not waited
                self.end_headers()
                self.wfile.write(json.dumps(found[path]).encode())

    with http_server(Handler) as port:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            asked.set()


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``taskrunner`` is on the PATH and has a home of its own."""
    program = tmp_path / "bin" / "taskrunner"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKRUNNER_")}
    return {
        **kept,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TASKRUNNER_HOME": str(tmp_path / "home"),
        "TASKRUNNER_API_TOKEN": TOKEN,
    }


def offers(env: dict[str, str], expected: list[str], *words: str) -> bool:
    """Tell whether bash would offer just this; asked again, because a busy machine may not answer in time."""
    return any(completed(env, *words) == expected for _ in range(10))


def completed(env: dict[str, str], *words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    script = 'eval "$(taskrunner completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
    script += '_taskrunner_completion taskrunner; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", "taskrunner", *words],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_person_at_a_bash_completes_a_command_and_a_task(env: dict[str, str], tmp_path: Path) -> None:
    with service() as url:
        bash = Terminal(
            ["bash", "--norc", "--noprofile", "-i"], cwd=tmp_path, env={**env, "TASKRUNNER_API_URL": url, "PS1": "$ "}
        )
        bash.wait_for(r"(?m)^\$$")
        bash.type(b'eval "$(taskrunner completion bash)"; echo is "ready"\n')
        bash.wait_for("(?m)^is ready$")
        bash.type(b"taskrunner canc\t")
        bash.wait_for(r"(?m)taskrunner cancel$")
        for _ in range(10):  # a busy machine may not answer in time
            bash.type(b"t\t")
            with contextlib.suppress(AssertionError):
                bash.wait_for(r"(?m)taskrunner cancel t-one$", timeout=3)
                break
            bash.type(b"\x7f")
        bash.wait_for(r"(?m)taskrunner cancel t-one$")  # the only one that can be cancelled
        bash.type(b"\x15exit\n")
        assert bash.end() == 0
        bash.close()


def test_ids_are_those_that_the_service_knows(env: dict[str, str]) -> None:
    with service() as url:
        env["TASKRUNNER_API_URL"] = url
        assert offers(env, ["t-one", "t-two"], "show", "")
        assert offers(env, ["t-two"], "logs", "-f", "t-t")
        assert offers(env, ["t-one"], "cancel", "")
        assert offers(env, ["container", "from-the-service", "local", "worktree"], "run", "--template", "")
        env["TASKRUNNER_API_TOKEN"] = "wrong"
        assert completed(env, "show", "") == []


def test_without_a_service_everything_else_is_completed(env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "any.yaml").write_text("# mine\nname: my-own\nbackend: local\n")
    (folder / "broken.yaml").write_bytes(b"\xff[")
    env["TASKRUNNER_TEMPLATES"] = str(folder)
    assert completed(env, "show", "") == []
    assert completed(env, "run", "--template", "") == ["container", "local", "my-own", "worktree"]
    assert completed(env, "templates", "show", "my") == ["my-own"]
    assert completed(env, "templates", "") == ["list", "show"]
    assert completed(env, "run", "--agent", "sh") == ["shell"]
    assert completed(env, "run", "--js") == ["--json"]
    assert completed(env, "list", "--status", "c") == ["completed", "cancelled"]
    assert {"run", "apply", "dev", "completion"} <= set(completed(env, ""))


def test_the_token_of_the_home_is_shown_to_its_own_stack_only(env: dict[str, str]) -> None:
    """S35: a record that a dead stack left may name a port that is another program's by now."""
    home = Path(env["TASKRUNNER_HOME"])
    home.mkdir()
    (home / "api-token").write_text(TOKEN)
    del env["TASKRUNNER_API_TOKEN"]
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    with service() as url:
        record = {"pid": os.getpid(), "started": started, "api_url": url}
        (home / "stack.json").write_text(json.dumps(record))
        assert offers(env, ["t-one", "t-two"], "show", "")
        (home / "stack.json").write_text(json.dumps(record | {"started": started + 1}))
        assert completed(env, "show", "") == []


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("zsh", {"COMP_WORDS": "taskrunner show t-o", "COMP_CWORD": "2"}),
        ("fish", {"COMP_WORDS": "taskrunner show t-o", "COMP_CWORD": "t-o"}),
    ],
)
def test_zsh_and_fish_are_told_what_a_task_is_about(env: dict[str, str], shell: str, variables: dict[str, str]) -> None:
    script = subprocess.run([*PROGRAM, "completion", shell], env=env, capture_output=True, text=True, check=True)
    assert f"_TASKRUNNER_COMPLETE={shell}_complete" in script.stdout
    variables |= {"_TASKRUNNER_COMPLETE": f"{shell}_complete"}
    with service() as url:
        for _ in range(10):  # a busy machine may not answer in time
            done = subprocess.run(
                PROGRAM,
                env={**env, **variables, "TASKRUNNER_API_URL": url},
                capture_output=True,
                text=True,
                check=True,
            )
            if done.stdout:
                break
    assert "t-one" in done.stdout
    assert "running: first line" in done.stdout
    assert "\x1b" not in done.stdout
    assert "t-two" not in done.stdout


def test_a_key_press_never_waits_long(env: dict[str, str]) -> None:
    """0.15 s of work at most, and 0.15 s for a service that hangs: what else runs here only adds to it."""

    def seconds(command: list[str], **variables: str) -> tuple[float, float]:
        took: list[tuple[float, float]] = []
        for _ in range(5):
            began, worked = perf_counter(), _children_seconds()
            subprocess.run(command, check=True, capture_output=True, env={**env, **variables})
            took.append((perf_counter() - began, _children_seconds() - worked))
        return min(wall for wall, _ in took), min(work for _, work in took)

    def press(words: str, url: str) -> tuple[float, float]:
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "TASKRUNNER_API_URL": url}
        return seconds(PROGRAM, _TASKRUNNER_COMPLETE="bash_complete", **variables)

    _, bare = seconds([sys.executable, "-c", "pass"])
    with service(answers=False) as hanging:
        for words in ("taskrunner show ", "taskrunner run --template ", "taskrunner "):
            refused, work = press(words, "http://127.0.0.1:1")
            assert work < bare + 0.15, words
            assert press(words, hanging)[0] < refused + 0.25, words


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_names_that_are_known_without_loading_anything_are_the_right_ones() -> None:
    assert set(AGENTS) == set(AGENT_PRESETS)
    assert set(BACKENDS) == set(SUPPORTED_BACKENDS)


@pytest.mark.parametrize("command", ["run", "submit"])
def test_help_names_every_backend(command: str) -> None:
    said = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    assert f"Where the workspace lives: {', '.join(SUPPORTED_BACKENDS[:-1])} or {SUPPORTED_BACKENDS[-1]}." in said
