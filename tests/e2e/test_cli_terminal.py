"""``taskrunner run`` at a terminal: what a person sees, and what Ctrl-C leaves behind in each phase."""

import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, Cli, private_cli
from tests.support.git_repositories import git, make_repository
from tests.support.stack import Gate
from tests.support.terminal import Terminal

pytestmark = pytest.mark.timeout(240)

STEPS = ["preflight", "provisioning", "verifying", "creating session", "session running", "releasing"]


@pytest.fixture(scope="module")
def served() -> Iterator[Cli]:
    """With a stack that is there already."""
    with private_cli() as cli, cli.dev():
        yield cli


@contextmanager
def at_terminal(cli: Cli, *args: str, cwd: Path | None = None, **options: int) -> Iterator[Terminal]:
    """Run it at a terminal, which has to be as it was at the end."""
    terminal = Terminal([*PROGRAM, *args], cwd=cwd or cli.cwd, env=cli.env, **options)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.end()
        terminal.close()


def assert_as_found(terminal: Terminal) -> None:
    assert terminal.attributes_now() == terminal.attributes
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.mode == terminal.mode
    assert terminal.screen.cursor.x == 0 or terminal.lines[-1] == "^C"  # which the terminal itself shows


def listed(terminal: Terminal) -> list[str]:
    """The names of the steps in the list, in their order."""
    found = re.findall(r"(?m)^  ([a-z ]+?) +(?:for|took) +(?:[\d.]+s|\d+m\d\ds)$", terminal.text)
    return [step for step in found if step != "waiting for ready"]


def test_steps_are_a_live_list_below_the_output(served: Cli, gate: Gate) -> None:
    prompt = (
        "echo first; printf '\\033[31mred\\033[0m \\033[2Jstays\\n'; printf 'ha'; "
        f"read line < {gate}; echo lf; printf $line"
    )
    with at_terminal(served, "run", "--backend", "local", prompt) as terminal:
        terminal.wait_for(
            r"ha\n  preflight +took +[\d.]+s\n(?s:.*)\n"
            r"  session running +for +[1-9][\d.]*s\n    waits until .* for the end"
        )
        assert "http://" in terminal.text
        before = terminal.wait_for(r"session running +for +(\S+)s")[1]
        terminal.wait_for(rf"session running +for +(?!{re.escape(before)})[\d.]+s")
        terminal.resize(40, 40)
        terminal.wait_for(r"    waits until .{0,27}…\n?$")
        terminal.resize(100, 40)
        gate.open("end")
        assert terminal.end() == 0
        assert_as_found(terminal)
        assert terminal.lines[3:6] == ["first", "red stays", "half"] or terminal.lines[2:5] == [
            "first",
            "red stays",
            "half",
        ]
        assert listed(terminal) == STEPS
        text = terminal.text
        assert text.index("preflight") < text.index("completed in ")
        assert "waits until" not in text
        assert text.count("preflight") == 1


@pytest.mark.parametrize(("columns", "rows"), [(12, 4), (1, 1), (200, 3)])
def test_a_tiny_window_shows_what_fits(served: Cli, gate: Gate, columns: int, rows: int) -> None:
    prompt = f"echo begun > {gate}.begun; read line < {gate}; echo out"
    with at_terminal(served, "run", prompt, columns=columns, rows=rows) as terminal:
        terminal.wait_for("(?s)s.*e.*s.*s" if columns > 1 else ".")
        gate.open()
        assert terminal.end() == 0
        assert_as_found(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(served: Cli, number: signal.Signals) -> None:
    task = number.name.lower()
    with at_terminal(served, "run", "--id", task, "echo begun; sleep 1000") as terminal:
        terminal.wait_for("begun(?s:.*)session running")
        terminal.process.send_signal(number)
        assert terminal.end() == 130
        assert_as_found(terminal)
        assert f"taskrunner cancel {task}" in terminal.text
        assert served.run("cancel", task).code == 0
        assert "cancelled" in served.run("events", "-f", task).out


def test_where_nobody_wants_them_there_are_no_escape_sequences(served: Cli) -> None:
    """Pipes, NO_COLOR and TERM=dumb; and who forces colours gets them."""
    piped = served.run("run", "--id", "one", "exit 1")
    assert "\x1b" not in piped.err + piped.out
    assert "\x1b" not in served.run("show").err
    forced = {"CLICOLOR_FORCE": "1"}
    assert "\x1b[31merror:" in served.run("show", "nobody", env=forced).err
    assert "\x1b[31m" in served.run("list", env=forced).out
    assert "\x1b" not in served.run("list", env={**forced, "NO_COLOR": "1"}).out
    for env in ({"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "xterm", "CI": "true"}):
        terminal = Terminal([*PROGRAM, "run", "true"], cwd=served.cwd, env=served.env, overrides=env)
        assert terminal.end() == 0
        assert (b"\x1b[J" in terminal.raw) == ("NO_COLOR" in env)
        assert (b"\x1b[32" in terminal.raw) == ("CI" in env)
        assert (b"\x1b" in terminal.raw) == (env["TERM"] != "dumb")
        terminal.close()


def test_much_output_scrolls_by_as_fast_as_without_the_list(served: Cli) -> None:
    """The live list costs little beside what the output costs on its way here."""
    prompt = "yes 'a line of some length that says nothing at all' | head -c 30000000"
    began = time.monotonic()
    assert served.run("run", prompt).code == 0
    plain = time.monotonic() - began
    with at_terminal(served, "run", prompt, watched=0) as terminal:
        began = time.monotonic()
        assert terminal.end(180) == 0
        assert time.monotonic() - began < 2 * plain + 5
    assert terminal.raw.count(b"says nothing at all") >= 30000000 // 47


def left_in(cli: Cli, repository: Path) -> list[str]:
    """Return what is left of a run but the home's records and the repository's own files."""
    found = [f"process {command}" for command in cli.wait_until_gone().values()]
    found += [
        line for line in git(repository, "worktree", "list").splitlines() if not line.startswith(f"{repository} ")
    ]
    found += [str(path) for path in repository.rglob("*.lock")]
    found += git(repository, "status", "--porcelain").splitlines()
    found += git(repository, "branch", "--list", "taskrunner/*").splitlines()
    for folder in ("workspaces", "worktrees", "scratch"):
        found += [str(path) for path in (cli.home / folder).glob("*")]
    return found


PHASES = {
    "stack starting": ("true", "Starting the embedded stack"),
    "submitted": ("true", "Starting(?s:.*)Task "),
    "provisioning": ("true", "  (preflight|provisioning) "),
    "waiting for ready": ("true", "  waiting for ready "),
    "session": ("(setsid sleep 1000 &); echo begun; sleep 1000", "begun"),
    "releasing": ("(trap '' TERM; setsid sleep 1000) & sleep 0.2", "  releasing "),
    "stack stopping": ("true", "completed in "),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_leaves_nothing_in_any_phase(cli: Cli, tmp_path: Path, phase: str) -> None:
    """S26, S50: SIGINT from the terminal to everything in its foreground, wherever the run is."""
    repository = make_repository(tmp_path / "repository")
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "slow.yaml").write_text("name: slow\nbackend: worktree\nsetup: ['sleep 1000']\n")
    cli.env["TASKRUNNER_TEMPLATES"] = str(templates)
    prompt, pattern = PHASES[phase]
    options = ["--template", "slow"] if phase in {"provisioning", "waiting for ready", "submitted"} else []
    with at_terminal(cli, "run", "--id", "stop-me", *options, prompt, cwd=repository) as terminal:
        terminal.wait_for(pattern)
        terminal.type(b"\x03")
        assert terminal.end() == 130, terminal.text
        assert_as_found(terminal)
    assert "Traceback" not in terminal.text
    assert left_in(cli, repository) == []
    with cli.dev():
        status = cli.run("show", "stop-me", "--json")
        if phase == "stack starting":
            assert status.code == 1
        else:
            assert re.search('"status":"(cancelled|completed)"', status.out), status


@pytest.mark.parametrize("more", [(), (signal.SIGHUP,), (signal.SIGINT, signal.SIGHUP)])
def test_a_terminal_that_is_closed_cancels_the_task(cli: Cli, tmp_path: Path, more: tuple[signal.Signals, ...]) -> None:
    """S50: the kernel and the shell each say so, more than once; nobody wanted the agent to go on unseen."""
    repository = make_repository(tmp_path / "repository")
    prompt = "echo begun; while :; do echo more; sleep 0.1; done"
    with at_terminal(cli, "run", "--id", "stop-me", prompt, cwd=repository) as terminal:
        terminal.wait_for("begun")
        terminal.hang_up()
        for number in more:
            terminal.process.send_signal(number)
        terminal.process.wait(60)
    assert left_in(cli, repository) == []
    with cli.dev():
        assert cli.json("show", "stop-me")["status"] == "cancelled"


def test_a_second_ctrl_c_leaves_at_once_and_the_rest_is_cleaned_up_later(cli: Cli, tmp_path: Path) -> None:
    """S50."""
    repository = make_repository(tmp_path / "repository")
    prompt = "trap '' TERM INT; echo begun; while :; do sleep 1; done"
    with at_terminal(cli, "run", "--id", "stop-me", prompt, cwd=repository) as terminal:
        terminal.wait_for("begun")
        stack = os.pidfd_open(json.loads((cli.home / "stack.json").read_text())["pid"])
        terminal.type(b"\x03")
        terminal.wait_for("once more to leave at once")
        terminal.type(b"\x03")
        began = time.monotonic()
        assert terminal.end() == 130
        assert time.monotonic() - began < 10
        assert_as_found(terminal)
        assert "taskrunner dev" in terminal.text
    assert select.select([stack], [], [], 60)[0]  # nobody uses it any more
    os.close(stack)
    with cli.dev():
        assert "cancelled" in cli.run("events", "-f", "stop-me").out
    assert left_in(cli, repository) == []


@pytest.mark.parametrize("follow", [(), ("-f",)], ids=" ".join)
def test_a_person_is_told_why_there_is_no_output(served: Cli, follow: tuple[str, ...], tmp_path: Path) -> None:
    failed = served.run("run", "--repo", f"file://{tmp_path}/nowhere.git", "true")
    assert failed.code == 1, failed
    with at_terminal(served, "logs", *follow, failed.task_id) as terminal:
        assert terminal.end() == 0
        assert terminal.lines == [f"no output: it failed in preflight; taskrunner show {failed.task_id}"]
    piped = served.run("logs", *follow, failed.task_id)
    assert (piped.code, piped.out, piped.err) == (0, "", "")
