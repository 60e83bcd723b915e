"""Commands on a home whose stack has stopped: its records answer, and a stack is started only for what needs one."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.home import FileLock
from tests.support.cli import PROGRAM, Cli, is_one_line, private_cli
from tests.support.git_repositories import make_repository
from tests.support.terminal import Terminal

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """A home whose stack has stopped: ``done`` has ended, ``followed`` and ``unwanted`` wait for their gates."""
    with private_cli() as cli:
        make_repository(cli.cwd / "repository")
        with cli.dev():
            for name in ("followed", "unwanted"):
                os.mkfifo(cli.cwd / name)
                script = f"echo begun; read line < {cli.cwd / name}; echo $line"
                assert cli.run("submit", "--id", name, "--backend", "local", script).code == 0
            done = cli.run("run", "--id", "done", "echo hello; echo new > made", cwd=cli.cwd / "repository")
            assert done.code == 0, done
            for name in ("followed", "unwanted"):
                begun = cli.start("logs", "-f", name)
                begun.wait_for("begun", stream="out")
                begun.signal(signal.SIGINT)
                begun.end()
        yield cli
        if cli.processes():  # as where not all tests have run
            for name in ("followed", "unwanted"):
                cli.run("cancel", name)


def servers_of(cli: Cli) -> list[str]:
    return [
        command
        for command in cli.processes().values()
        if any(word in command for word in ("start-dev", "bin/postgres", "cli.main"))
    ]


@contextmanager
def temporal_untouched(cli: Cli) -> Iterator[None]:
    before = (cli.home / "temporal.db").stat().st_mtime_ns, (cli.home / "stack.json").read_bytes()
    yield
    assert ((cli.home / "temporal.db").stat().st_mtime_ns, (cli.home / "stack.json").read_bytes()) == before
    assert servers_of(cli) == []


def test_a_task_that_has_ended_is_shown_from_the_records_alone(cli: Cli) -> None:
    """S49, S50: as while the stack ran, without Temporal, and nothing is left behind."""
    with temporal_untouched(cli):
        assert "done" in cli.run("list").out
        assert cli.json("show", "done")["status"] == "completed"
        logs = cli.run("logs", "-f", "done")
        assert (logs.code, logs.out, logs.err) == (0, "hello\n", "")
        events = cli.run("events", "-f", "--json", "done").out.splitlines()
        assert json.loads(events[-1])["current"] == "completed"
        assert "+new" in cli.run("diff", "done").out
        applied = cli.run("apply", "done", cwd=cli.cwd / "repository")
        assert applied.code == 0, applied
        assert (cli.cwd / "repository" / "made").read_text() == "new\n"
        for args, told in ((("cancel", "done"), "is completed already"), (("show", "nope"), "there is no task 'nope'")):
            refused = cli.run(*args)
            assert refused.code == 1, refused
            assert is_one_line(refused)
            assert told in refused.err


def test_a_task_that_was_left_unfinished_is_shown_as_it_is_and_does_not_go_on(cli: Cli) -> None:
    with temporal_untouched(cli):
        shown = cli.run("show", "unwanted")
        assert "running (session running)" in shown.out
        assert "1 task is unfinished (unwanted); it goes on while a stack runs: taskrunner dev" in shown.err
        assert cli.run("logs", "unwanted").out == "begun\n"


def test_commands_that_come_at_once_take_turns_and_need_no_keys(cli: Cli) -> None:
    with temporal_untouched(cli):
        without_keys = {"TASKRUNNER_KEYS_FILE": "/nowhere/keys.json"}
        for command in [cli.start("show", "done", "--json", env=without_keys) for _ in range(3)]:
            finished = command.end()
            assert finished.code == 0, finished
            assert finished.err == ""


def test_a_stack_that_starts_meanwhile_waits_for_a_command_that_reads(cli: Cli) -> None:
    """A dev is not refused for a moment's reading."""
    reading = FileLock(cli.home / "start.lock")
    assert reading.try_exclusive()
    dev = cli.start("dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0")
    dev.wait_for("Waiting for another taskrunner", stream="err")
    reading.close()
    dev.wait_for("is ready after", stream="out")
    dev.signal(signal.SIGTERM)
    assert dev.end().code == 0


def test_a_person_is_told_of_the_look_up_and_may_interrupt_it(cli: Cli) -> None:
    """S50: Ctrl-C leaves nothing."""
    with temporal_untouched(cli):
        stopping = FileLock(cli.home / "stack.lock")
        stopping.exclusive()
        told = f"No service runs: looking it up in {cli.home}"
        shown = Terminal([*PROGRAM, "show", "done"], cwd=cli.cwd, env=cli.env, columns=200)
        shown.wait_for(f"Waiting for the stack on {cli.home} to stop")
        stopping.close()
        shown.wait_for("No service runs")
        assert shown.end() == 0
        assert told in shown.text
        left = Terminal([*PROGRAM, "show", "done"], cwd=cli.cwd, env=cli.env, columns=200)
        left.wait_for("No service runs")
        left.type(b"\x03")
        assert left.end() == 130
        for terminal in (shown, left):
            terminal.close()


def test_following_a_task_that_goes_on_starts_the_stack_until_it_has_ended(cli: Cli) -> None:
    """S50: the last one out stops it; a dev is refused until then, and told why."""
    following = cli.start("logs", "-f", "followed")
    following.wait_for("begun", stream="out")
    refused = cli.run("dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0")
    assert refused.code == 2, refused
    assert "which a taskrunner run or another command has started" in refused.err
    assert "start dev when no task runs any more" in refused.err
    (cli.cwd / "followed").write_text("ended\n")
    finished = following.end()
    assert (finished.code, finished.out, finished.err) == (0, "begun\nended\n", "")
    with temporal_untouched(cli):
        assert cli.json("show", "followed")["status"] == "completed"


def test_cancelling_a_task_that_was_left_ends_it(cli: Cli) -> None:
    """S26: not only asked for, since nobody would carry it out."""
    cancelled = cli.run("cancel", "unwanted")
    assert (cancelled.code, cancelled.out) == (0, ""), cancelled
    assert cancelled.err == "Task unwanted is cancelled, and its workspace taken down.\n"
    with temporal_untouched(cli):
        task = cli.json("show", "unwanted")
        assert (task["status"], task["workspace"]["status"]) == ("cancelled", "removed")
