"""Whatever is wrong: one line that says what to do, the right exit code, no traceback, nothing left behind."""

import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

from tests.support.cli import PROGRAM, Cli, Finished, is_one_line
from tests.support.port import http_server

pytestmark = pytest.mark.timeout(120)


def refused(finished: Finished, code: int, *words: str) -> None:
    assert finished.code == code, finished
    assert is_one_line(finished), finished
    for word in words:
        assert word in finished.err, finished


def make_repository(folder: Path, *, commit: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    if commit:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(
            ["git", "-C", str(folder), *identity, "commit", "-q", "--allow-empty", "-m", "first"], check=True
        )
    return folder


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run"], ["PROMPT", "taskrunner run --help"]),
        (["run", "--wat", "x"], ["--wat"]),
        (["run", "x", "--id"], ["--id", "taskrunner run --help"]),
        (["templates", "show", "--wat"], ["--wat", "taskrunner templates show --help"]),
        (["rnu", "x"], ["did you mean 'run'"]),
        (["run", "  "], ["blank"]),
        (["run", "--backend", "nowhere", "x"], ["nowhere", "local, worktree"]),
        (["run", "--backend", "vm", "x"], ["vm", "local, worktree"]),
        (["run", "--agent", "wizard", "x"], ["wizard", "shell"]),
        (["run", "--template", "nope", "x"], ["nope", "local, worktree"]),
        (["run", "--timeout", "5", "x"], ["--timeout", "90s"]),
        (["run", "--timeout", "0s", "x"], ["--timeout 0s"]),
        (["run", "--id", "../x", "x"], ["../x", "letters"]),
        (["run", "--id", "Ä", "x"], ["letters"]),
        (["run", "--repo", "/nowhere/at/all", "x"], ["/nowhere/at/all", "no such folder"]),
        (["run", "--repo", "/etc/passwd", "x"], ["not a folder"]),
        (["run", "--repo", "/proc", "x"], ["/proc is not a git repository"]),
        (["run", "--repo", "https://me:pw@example.org/x.git", "x"], ["credential helper"]),
        (["run", "--repo", "http://example.org/x.git", "x"], ["https://"]),
        (["run", "--backend", "worktree", "x"], ["--repo"]),
        (["run", "--ref", "main", "x"], ["--repo"]),
        (["run", "--env", "NO_SUCH_KEY", "x"], ["--env NO_SUCH_KEY", "not set"]),
        (["run", "--env", "MY_KEY=value", "x"], ["--env MY_KEY=...", "list of processes"]),
        (["submit", "--env", "HOME", "--env", "", "x"], ["--env", "not set"]),
        (["submit", "--env", "TASKRUNNER_HOME", "x"], ["TASKRUNNER_HOME is ours"]),
        (["dev", "--port", "70000"], ["70000"]),
        (["list", "--status", "odd"], ["odd"]),
        (["migrate"], ["TASKRUNNER_DATABASE_URL"]),
        (["worker"], ["TASKRUNNER_DATABASE_URL"]),
        (["api"], ["TASKRUNNER_DATABASE_URL"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else None,
)
def test_wrong_usage_is_refused_before_anything_starts(cli: Cli, args: list[str], words: list[str]) -> None:
    """S13, S36: exit code 2, and no stack was started for it."""
    refused(cli.run(*args), 2, *words)
    assert not (cli.home / "postgres").exists()
    assert cli.processes() == {}


@pytest.mark.parametrize("command", ["migrate", "worker", "api"])
def test_a_database_url_that_cannot_be_read_is_not_shown(cli: Cli, command: str) -> None:
    """S37: it holds a password, and libpq quotes what it does not understand."""
    for url in ("postgresql://me:hunter2%zz@db/x", "postgresql://me:hunter/2@db/x", "me:hunter2@db/x"):
        finished = cli.run(command, env={"TASKRUNNER_DATABASE_URL": url})
        refused(finished, 2, "TASKRUNNER_DATABASE_URL", "postgresql://user:password@host")
        assert "hunter" not in finished.err


def test_repositories_that_cannot_be_worked_on_are_refused(cli: Cli) -> None:
    unborn = make_repository(cli.cwd / "unborn", commit=False)
    refused(cli.run("run", "x", cwd=unborn), 2, "has no commit yet")
    born = make_repository(cli.cwd / "born")
    refused(cli.run("run", "--ref", "nope", "x", cwd=born), 2, "'nope'")
    refused(cli.run("run", "--ref", "--upload-pack=x", "x", cwd=born), 2, "--upload-pack")
    odd = make_repository(cli.cwd / "not UTF-8: \udcff")  # a request could not name it
    refused(cli.run("submit", "x", cwd=odd), 2, "has to be text in UTF-8")
    refused(cli.run("submit", "--repo", str(odd), "x"), 2, "--repo", "has to be text in UTF-8")
    assert cli.processes() == {}


@pytest.mark.parametrize(
    "args", [["show", "x"], ["logs", "x"], ["diff", "x"], ["events", "x"], ["cancel", "x"]], ids=lambda args: args[0]
)
def test_where_nothing_has_run_yet_the_way_to_the_first_task_is_told(cli: Cli, args: list[str]) -> None:
    refused(cli.run(*args), 1, "taskrunner run")
    assert not cli.home.exists()


def test_a_task_is_not_submitted_where_nobody_would_carry_it_out(cli: Cli) -> None:
    refused(cli.run("submit", "x"), 3, "taskrunner dev")
    assert not cli.home.exists()


@contextmanager
def answering(content: str, status: int = 200, body: bytes = b"{}") -> Iterator[str]:
    """Another program's server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

    with http_server(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("content", "status", "body"),
    [
        ("text/html", 200, b"<html>"),
        ("text/html", 404, b"<html>"),
        ("text/html", 401, b"<html>"),
        ("text/html", 301, b""),
        ("application/json", 200, b'{"hello": "world"}'),
        ("application/json", 404, b'{"detail": "Not Found"}'),
    ],
)
def test_something_else_at_the_named_address_is_told_apart(cli: Cli, content: str, status: int, body: bytes) -> None:
    with answering(content, status, body) as url:
        for args in (["run", "x"], ["list"], ["logs", "-f", "x"], ["diff", "x"], ["templates", "list"]):
            finished = cli.run(*args, env={"TASKRUNNER_API_URL": url}, timeout=15)
            refused(finished, 3, url, "something that is not taskrunner's API; check TASKRUNNER_API_URL")


@pytest.mark.parametrize("token", ["geh€im", "se cret", "secret\n", "\udcff"])
def test_a_token_that_no_header_takes_is_refused_and_not_shown(cli: Cli, token: str) -> None:
    """S37."""
    finished = cli.run("list", env={"TASKRUNNER_API_URL": "http://127.0.0.1:1", "TASKRUNNER_API_TOKEN": token})
    refused(finished, 2, "TASKRUNNER_API_TOKEN")
    assert "cret" not in finished.err
    assert "geh" not in finished.err


def test_the_home_of_nobody_and_a_folder_that_is_gone_are_named(cli: Cli) -> None:
    refused(cli.run("list", env={"TASKRUNNER_HOME": "~nope/x"}), 2, "TASKRUNNER_HOME", "~nope/x")
    refused(cli.run("run", "--repo", "~nope/x", "true"), 2, "~nope/x")
    script = f"mkdir gone && cd gone && rmdir ../gone && exec {shlex.join([*PROGRAM, 'run', 'true'])}"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=cli.cwd, env=cli.env, capture_output=True, check=False)
    refused(Finished(done.returncode, done.stdout, done.stderr), 2, str(cli.cwd / "gone"))


def test_an_output_that_takes_nothing_is_told(cli: Cli) -> None:
    def to(target: str, *args: str) -> Finished:
        script = f"exec {shlex.join([*PROGRAM, *args])} {target}"
        done = subprocess.run(["/bin/sh", "-c", script], cwd=cli.cwd, env=cli.env, capture_output=True, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)

    refused(to(">&-", "list"), 2, "stdout is closed")
    with cli.dev():
        refused(to("> /dev/full", "list", "--json"), 1, "No space left on device")
        submitted = to("> /dev/full", "submit", "--backend", "local", "--id", "unseen", "true")
        refused(submitted, 1, "No space left on device", "unseen", "goes on")
        followed = to("> /dev/full", "run", "--backend", "local", "--id", "unread", "echo x; sleep 1000")
        assert followed.code == 1, followed
        for told in ("No space left on device", "Task unread goes on", "taskrunner cancel unread"):
            assert told in followed.err
        assert cli.run("cancel", "unread").code == 0
        assert cli.run("logs", "-f", "unread").code == 0
    own = to("> /dev/full", "run", "--backend", "local", "echo x; sleep 1000")
    assert own.code == 1, own
    assert "No space left on device" in own.err
    assert "cancelled in " in own.err
    assert "Traceback" not in own.err


def test_a_named_service_that_does_not_answer_is_not_replaced(cli: Cli) -> None:
    env = {"TASKRUNNER_API_URL": "http://127.0.0.1:1"}
    for args in (["run", "echo x"], ["list"]):
        refused(cli.run(*args, env=env), 3, "http://127.0.0.1:1", "taskrunner doctor")
    refused(cli.run("list", env={"TASKRUNNER_API_URL": "nonsense"}), 2, "TASKRUNNER_API_URL")
    with_password = cli.run("list", env={"TASKRUNNER_API_URL": "http://me:hunter2@127.0.0.1:1"})
    refused(with_password, 2, "TASKRUNNER_API_URL: take the user and the password out of it")
    assert "hunter" not in with_password.err
    assert not cli.home.exists()


def test_ids_and_names_that_the_service_does_not_know(cli: Cli) -> None:
    """S36: unknown and malformed ids, and the state of a second stack on a home in use."""
    with cli.dev():
        for command in ("show", "logs", "events", "diff", "cancel"):
            refused(cli.run(command, "unknown"), 1, "unknown", "see: taskrunner list")
            refused(cli.run(command, "../x"), 2, "letters")
        refused(cli.run("templates", "show", "unknown"), 1, "unknown", "worktree")
        refused(cli.run("list", "--cursor", "nonsense"), 2, "error: --cursor 'nonsense': no earlier list gave it")
        refused(cli.run("dev", "--port", "0"), 2, "runs on", "already")
        first = cli.run("submit", "--id", "same", "echo x")
        assert (first.code, first.out) == (0, "same\n"), first
        assert cli.run("submit", "--id", "same", "echo x").code == 0
        refused(cli.run("submit", "--id", "same", "echo y"), 2, "same")
        followed = cli.run("logs", "-f", "same")
        assert (followed.code, followed.out) == (0, "x\n"), followed
        refused(cli.run("cancel", "same"), 1, "completed")
        refused(cli.run("diff", "same"), 1, "nothing was changed")
        refused(cli.run("list", env={"TASKRUNNER_API_TOKEN": "wrong"}), 3, "TASKRUNNER_API_TOKEN; unset it")
    assert cli.processes() == {}


def test_templates_that_cannot_be_used_are_told_when_the_stack_starts_and_when_they_are_asked_for(cli: Cli) -> None:
    folder = cli.cwd / "templates"
    folder.mkdir()
    (folder / "odd.yaml").write_text("name: odd\nbackend: lokal\n")
    (folder / "worse.yaml").write_text("[")
    (folder / "good.yaml").write_text("name: good\nbackend: local\nsession_timeout: 90m\nruntime: hermez\n")
    env = {"TASKRUNNER_TEMPLATES": str(folder)}
    with cli.dev(env=env) as stack:
        stack.wait_for(r"(?m)^The template odd\.yaml cannot be used: backend: has to be one of", stream="err")
        stack.wait_for(r"(?m)^The template worse\.yaml cannot be used: not valid YAML", stream="err")
        refused(cli.run("submit", "--template", "odd", "x"), 2, "odd.yaml: backend: has to be one of")
        other = cli.run("submit", "--template", "other", "x")
        refused(other, 2, "known: container, good, local, worktree; 2 files cannot be used: taskrunner templates list")
        shown = cli.run("templates", "show", "good")
        assert "session_timeout: 1h30m\nheartbeat_interval: 15s\n" in shown.out, shown
        warning = "runtime 'hermez' is not known and sets no default timeout; did you mean 'hermes'?"
        assert f"# warning: {warning}\n" in shown.out, shown
        assert f"warning: good: {warning}\n" in cli.run("templates", "list").err
    # A run that wants none of them is not told.
    assert "odd.yaml" not in cli.run("run", "--template", "good", "true", env=env).err


def test_a_service_that_was_started_without_a_template_of_ours_is_told_so(cli: Cli) -> None:
    """What it knows is no help to who has the file before his eyes."""
    folder = cli.cwd / "templates"
    folder.mkdir()
    (folder / "review.yaml").write_text("name: review\nbackend: local\n")
    env = {"TASKRUNNER_TEMPLATES": str(folder)}
    told = f"known: container, local, worktree; {folder} has it, but the service was started without that folder"
    again = f"start it again with TASKRUNNER_TEMPLATES={folder} taskrunner dev"
    with cli.dev() as stack:
        for command in ("run", "submit"):
            refused(cli.run(command, "--template", "review", "x", env=env), 2, told, again)
            refused(cli.run(command, "--template", "other", "x", env=env), 2, "known: container, local, worktree\n")
        refused(cli.run("templates", "show", "review", env=env), 1, told, again)
        api = stack.wait_for(r"API +(http://\S+)", stream="out")[1]
        elsewhere = cli.run("run", "--template", "review", "x", env={**env, "TASKRUNNER_API_URL": api})
        refused(elsewhere, 2, told, "start it again with a TASKRUNNER_TEMPLATES that has it")


def test_all_ports_in_use_are_told_at_once_with_the_options_that_free_it(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(taken.getsockname()[1]) for taken in (one, other)]
        both = cli.run("dev", "--port", ports[0], "--temporal-port", "0", "--ui-port", ports[1])
        refused(both, 2, f"ports {ports[0]} (the API) and {ports[1]} (Temporal's UI) are in use")
        refused(both, 2, "taskrunner dev --port 0 --temporal-port 0 --ui-port 0")
        single = cli.run("dev", "--port", "0", "--temporal-port", ports[0], "--ui-port", "0")
        refused(single, 2, f"port {ports[0]} (Temporal) is in use")
        refused(single, 2, "taskrunner dev --port 0 --temporal-port 0 --ui-port 0")
        plain = cli.run("dev", "--port", ports[0], "--temporal-port", ports[1])  # the UI's is as it is without
        refused(plain, 2, "taskrunner dev --port 0 --temporal-port 0")
        assert "--ui-port 8233" not in plain.err
    assert cli.processes() == {}


def test_homes_that_cannot_be_used(cli: Cli) -> None:
    file = cli.cwd / "file"
    file.write_text("x")
    starts, looks = (
        (["run", "--backend", "local", "x"], ["dev", "--port", "0"]),
        (["list"], ["show", "x"], ["submit", "x"]),
    )
    for home in (file, file / "below", Path("/proc/home"), Path("/dev/null")):
        for args in starts if home.parent.name == "proc" else starts + looks:
            refused(
                cli.run(*args, env={"TASKRUNNER_HOME": str(home)}), 3, "TASKRUNNER_HOME", str(home).split("/below")[0]
            )
    assert file.read_text() == "x"
    assert "worktree" in cli.run("templates", "list", env={"TASKRUNNER_HOME": str(file)}).out  # are no part of it


def test_a_log_that_cannot_be_written_keeps_nobody_waiting(cli: Cli) -> None:
    for name in ("postgres", "logs/stack.log", "logs/postgres.log"):
        (cli.home / name).mkdir(parents=True, exist_ok=True)
    for args in (["run", "--backend", "local", "x"], ["dev", "--port", "0"]):
        finished = cli.run(*args, timeout=20)
        assert finished.code == 3, finished
        assert f"{cli.home}/logs/stack.log is a folder where a file has to be; " in finished.err
    refused(cli.run("list", timeout=20), 3, f"{cli.home}/logs/postgres.log is a folder where a file has to be; run: mv")
    assert cli.processes() == {}


def test_without_git_what_to_install_is_told(cli: Cli) -> None:
    refused(cli.run("run", "true", env={"PATH": "/nowhere"}), 3, "git is not on your PATH; install git")


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("keys.json", "{", 3, ["keys.json", "restore it, or move it away to begin with new keys"]),
        ("postgres/PG_VERSION", "9\n", 3, ["postgres"]),
        ("postgres/something", "x", 3, ["postgres", "move it away"]),
        (
            "temporal.db",
            "this is no database, and longer than a page header " * 100,
            3,
            ["temporal.db", "move it away"],
        ),
        ("temporal.db", "SQLite format 3\0" + "and nothing of one " * 500, 3, ["temporal.db", "move it away"]),
    ],
)
def test_a_broken_part_of_the_home_is_named(cli: Cli, name: str, content: str, code: int, words: list[str]) -> None:
    path = cli.home / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    path.chmod(0o600)
    finished = cli.run("dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0")
    refused(finished, code, *words)
    started = cli.run("run", "--backend", "local", "x")
    assert started.code == code, started
    assert started.err.splitlines()[-1].startswith("error: "), started
    assert "Traceback" not in started.err
    assert path.read_text() == content
    assert cli.processes() == {}


@pytest.mark.parametrize("name", ["workspaces", "records"])
def test_a_folder_that_takes_no_workspace_fails_the_task_at_once(cli: Cli, name: str) -> None:
    """It does not pass by itself: neither is the task tried again for an hour, nor its release."""
    cli.home.mkdir()
    (cli.home / name).write_text("a file")
    finished = cli.run("run", "--id", "placeless", "true", timeout=60)
    assert finished.code == 1, finished
    assert f"{cli.home / name} is not a folder; move it away" in finished.err
    assert "trying again" not in finished.err
    (cli.home / name).unlink()
    assert cli.json("show", "placeless")["workspace"]["leak_suspected_at"] is None


def test_records_that_cannot_be_read_are_as_good_as_none(cli: Cli) -> None:
    """A torn stack.json or an empty token file costs nothing but themselves."""
    cli.home.mkdir()
    (cli.home / "stack.json").write_text('{"pid": 1, "api_')
    (cli.home / "api-token").write_bytes(b"\xff\xfe")
    assert "Traceback" not in cli.run("list").err
    finished = cli.run("run", "echo fine")
    assert (finished.code, finished.out) == (0, "fine\n"), finished


def test_without_any_way_to_temporal_what_to_install_is_told(cli: Cli) -> None:
    tools = cli.cwd / "bin"
    tools.mkdir()
    env = {
        "PATH": str(tools),
        "XDG_CACHE_HOME": str(cli.cwd / "cache"),
        # A proxy that is not there: the download fails wherever this runs.
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:1"),
    }
    free = ("--port", "0", "--temporal-port", "0", "--ui-port", "0")
    finished = cli.run("dev", *free, env=env)
    assert finished.code == 3, finished
    last = finished.err.splitlines()[-1]
    assert last.startswith("error: "), finished
    assert "https://docs.temporal.io/cli" in last
    assert "TASKRUNNER_TEMPORAL_BIN" in last
    assert "Traceback" not in finished.err
    assert [path.name for path in (cli.cwd / "cache" / "taskrunner" / "bin").iterdir()] == [".lock"]
    refused(cli.run("dev", *free, env={"TASKRUNNER_TEMPORAL_BIN": "/nowhere/temporal"}), 3, "TASKRUNNER_TEMPORAL_BIN")
    refused(
        cli.run("dev", *free, env={"TASKRUNNER_TEMPORAL_BIN": "/bin/false"}),
        3,
        "/bin/false is not a Temporal CLI; correct or unset TASKRUNNER_TEMPORAL_BIN",
    )
    assert cli.processes() == {}


def test_help_is_there_at_once(cli: Cli) -> None:
    """Help imports none of the heavy parts: it takes a fifth of a second more than Python itself, at most."""

    def seconds(command: list[str]) -> float:
        took: list[float] = []
        for _ in range(5):
            began = perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=cli.env)
            took.append(perf_counter() - began)
        return median(took)

    bare = seconds([sys.executable, "-c", "pass"])
    for args in (["--help"], ["run", "--help"], ["list", "--help"], ["dev", "--help"], ["templates", "--help"]):
        assert seconds([*PROGRAM, *args]) < bare + 0.2, args


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_and_version_end_well(cli: Cli, args: list[str]) -> None:
    finished = cli.run(*args)
    assert finished.code == 0
    assert "taskrunner" in finished.out
    assert finished.err == ""
