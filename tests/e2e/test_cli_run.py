"""``taskrunner run`` from nothing to a finished task, as a user sees it."""

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from cli.interrupts import TWICE_SECONDS
from tests.support.cli import Cli
from tests.support.git_repositories import git, make_repository
from tests.support.stack import Gate

pytestmark = pytest.mark.timeout(240)


def test_a_run_starts_a_stack_shows_steps_and_output_and_leaves_no_process(cli: Cli) -> None:
    """S50: the stack that a run needed is gone with it."""
    finished = cli.run("run", "echo out; echo err >&2; printf end")
    assert finished.code == 0, finished
    assert finished.out == "out\nerr\nend"
    steps = [
        line.split(maxsplit=3)[3] for line in finished.err.splitlines() if line.startswith("  ") and ":" in line[:6]
    ]
    assert [step for step in steps if step != "waiting for ready"] == [
        "preflight",
        "provisioning",
        "verifying",
        "creating session",
        "session running",
        "releasing",
    ]
    assert "completed in " in finished.err
    assert ", exit code 0" in finished.err
    assert f"/workflows/task-{finished.task_id}" in finished.err
    assert cli.processes() == {}
    assert cli.run("logs", finished.task_id).out == finished.out
    assert cli.processes() == {}


def test_a_failing_prompt_ends_with_its_output_and_exit_code(cli: Cli) -> None:
    finished = cli.run("run", "echo so far; exit 7")
    assert finished.code == 1, finished
    assert finished.out == "so far\n"
    assert "failed in " in finished.err
    assert "exit code 7" in finished.err
    assert "Traceback" not in finished.err


def test_json_prints_the_task_on_stdout_and_keeps_the_output_off_it(cli: Cli) -> None:
    finished = cli.run("run", "--json", "--id", "chosen", "echo hello; exit 3")
    assert finished.code == 1, finished
    task = json.loads(finished.out)
    assert (task["id"], task["status"], task["session"]["exit_code"]) == ("chosen", "failed", 3)
    assert "hello" in finished.err


def test_in_a_repository_the_change_is_on_a_branch_and_the_checkout_untouched(cli: Cli, repository: Path) -> None:
    """S44: the result survives, and only as a branch."""
    sub = repository / "sub"
    sub.mkdir()
    with cli.dev():
        finished = cli.run("run", "echo two >> README; echo new > other", cwd=sub)
        assert finished.code == 0, finished
        branch = f"taskrunner/{finished.task_id}"
        assert branch in finished.err
        assert f"taskrunner diff {finished.task_id}" in finished.err
        diff = cli.run("diff", finished.task_id)
    assert diff.code == 0
    assert "+two" in diff.out
    assert git(repository, "show", f"{branch}:other") == "new"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "branch", "--show-current") == "main"
    subprocess.run(["git", "apply", "--check"], cwd=repository, input=diff.raw, check=True)


def test_what_is_changed_in_a_submodule_is_said_to_be_lost(cli: Cli, repository: Path, tmp_path: Path) -> None:
    """S44: where nothing else is changed too, so that there is no result that could say it."""
    library = make_repository(tmp_path / "library")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "sm")
    git(repository, "commit", "--quiet", "-m", "with a submodule")
    fill = "git -c protocol.file.allow=always submodule update -q --init"
    finished = cli.run("run", "--id", "inside", f"{fill} && echo changed >> sm/README", cwd=repository)
    assert finished.code == 0, finished
    told = "submodule sm: uncommitted changes; only what is pushed to a submodule's own remote stays"
    assert f"  change    none\n  not kept  {told}\n" in finished.err
    assert f"not kept  {told}" in cli.run("show", "inside").out
    assert f"not kept completed: {told}" in cli.run("logs", "--boot", "inside").out


@pytest.mark.parametrize("place", ["bare", "repository/.git", "repository/.git/refs"])
def test_in_a_bare_repository_and_in_a_git_folder_the_repository_is_used(
    cli: Cli, repository: Path, tmp_path: Path, place: str
) -> None:
    git(tmp_path, "clone", "-q", "--bare", "repository", "bare")
    finished = cli.run("run", "cat README; echo two >> README", cwd=tmp_path / place)
    assert finished.code == 0, finished
    assert finished.out == "hello\n"
    assert "+two" in git(tmp_path / place, "show", f"taskrunner/{finished.task_id}")
    assert git(tmp_path / "bare", "worktree", "list").count("\n") == 0


def test_outside_of_any_repository_it_says_so(cli: Cli) -> None:
    told = "not in a git repository: an empty folder is used"
    assert told in cli.run("run", "ls").err.splitlines()
    assert "empty folder" not in cli.run("run", "--backend", "local", "ls").err


def test_with_a_database_of_services_that_are_away_a_run_and_the_look_at_it_agree(cli: Cli) -> None:
    """The commands that the run names have to find its task in the environment that it was given."""
    env = {"TASKRUNNER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    unused = "TASKRUNNER_DATABASE_URL is for worker, api and migrate alone"
    ran = cli.run("run", "--id", "apart", "echo hello", env=env)
    assert (ran.code, ran.out) == (0, "hello\n"), ran
    assert f"{unused}: this runs on the embedded stack of {cli.home}" in ran.err.splitlines()
    shown = cli.run("show", "apart", env=env)
    assert (shown.code, shown.err) == (0, f"No service answers, and {unused}: looking it up in {cli.home}\n"), shown
    assert "completed" in shown.out
    assert cli.run("submit", "x", env=env).code == 3


@pytest.mark.parametrize("option", ["--backend", "--template"])
def test_local_by_itself_leaves_the_repository_around_it_alone_and_says_so(
    cli: Cli, repository: Path, option: str
) -> None:
    told = "an empty folder is used; for a clone of the repository that you are in, add: --repo ."
    finished = cli.run("run", option, "local", "cat README 2>&1 || true", cwd=repository)
    assert (finished.code, finished.out) == (0, "cat: README: No such file or directory\n"), finished
    assert told in finished.err.splitlines()
    named = cli.run("run", option, "local", "--repo", ".", "cat README", cwd=repository)
    assert (named.code, named.out) == (0, "hello\n"), named
    assert "empty folder" not in named.err


def test_a_template_on_another_backend_keeps_the_repository(cli: Cli, repository: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "mine.yaml").write_text("name: mine\nbackend: worktree\n")
    env = {"TASKRUNNER_TEMPLATES": str(templates)}
    finished = cli.run("run", "--template", "mine", "--backend", "local", "cat README", cwd=repository, env=env)
    assert (finished.code, finished.out) == (0, "hello\n"), finished
    assert git(repository, "branch", "--list", "taskrunner/*") == ""


def test_the_users_settings_for_their_databases_reach_the_task_and_not_the_stack(cli: Cli, tmp_path: Path) -> None:
    """libpq reads them in every process that connects."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "mine.yaml").write_text("name: mine\nbackend: local\nrequired_env: [PGPORT]\n")
    env = {
        "TASKRUNNER_TEMPLATES": str(templates),
        "PGPORT": "1",
        "PGSERVICE": "nowhere",
        "PGHOSTADDR": "127.0.0.1",
        "PGOPTIONS": "-c nothing=1",
        "PGSSLMODE": "require",
    }
    finished = cli.run("run", "--template", "mine", "echo port $PGPORT", env=env)
    assert (finished.code, finished.out) == (0, "port 1\n"), finished


def test_two_runs_share_a_stack_and_the_first_out_does_not_stop_it(cli: Cli, gate: Gate) -> None:
    """S50: one stack for both; it lives until the last one out."""
    first = cli.start("run", "echo first")
    second = cli.start("run", f"echo waiting; read line < {gate}; echo $line")
    second.wait_for("waiting", stream="out")
    ended = first.end()
    assert ended.code == 0, ended
    stacks = [command for command in cli.processes().values() if "--while-used" in command]
    assert len(stacks) == 1, cli.processes()
    gate.open("through")
    finished = second.end()
    assert finished.code == 0, finished
    assert finished.out == "waiting\nthrough\n"
    starts = [end.err.count("Starting the embedded stack") for end in (ended, finished)]
    assert sorted(starts) == [0, 1]
    assert cli.processes() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_run_that_started_the_stack_cancels_and_leaves_nothing(
    cli: Cli, number: signal.Signals
) -> None:
    """S26, S50: the task ends cancelled, its double-forked children too, and the stack is gone."""
    running = cli.start("run", "--id", "stop-me", "(setsid sleep 1000 &) ; echo started; sleep 1000")
    running.wait_for("started", stream="out")
    running.signal(number)
    finished = running.end()
    assert finished.code == 130, finished
    assert "Cancelling stop-me" in finished.err
    assert "cancelled in " in finished.err
    assert "Traceback" not in finished.err
    assert cli.processes() == {}
    with cli.dev():
        task = cli.json("show", "stop-me")
    assert task["status"] == "cancelled"
    assert task["workspace"]["status"] == "removed"


def test_a_second_sigterm_leaves_at_once_and_its_echo_does_not(cli: Cli) -> None:
    """S50: as a second Ctrl-C. ``timeout`` sends one twice at once, to its child and to its process group."""
    prompt = "trap '' TERM INT; echo begun; while :; do sleep 1; done"
    running = cli.start("run", "--id", "stop-me", prompt)
    running.wait_for("begun", stream="out")
    stack = os.pidfd_open(json.loads((cli.home / "stack.json").read_text())["pid"])
    running.signal(signal.SIGTERM)
    running.wait_for("once more to leave at once", stream="err")
    running.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.end(2 * TWICE_SECONDS)
    running.signal(signal.SIGTERM)
    finished = running.end(5)
    assert finished.code == 130, finished
    assert "Leaving. What is left of stop-me is taken down when the stack runs again" in finished.err
    assert select.select([stack], [], [], 60)[0]  # nobody uses it any more
    os.close(stack)
    with cli.dev():
        assert "cancelled" in cli.run("events", "-f", "stop-me").out


def test_an_interrupt_while_the_stack_starts_leaves_nothing(cli: Cli) -> None:
    """S50: also before there is a task."""
    running = cli.start("run", "echo never")
    running.wait_for("Starting", stream="err")
    running.signal(signal.SIGINT)
    finished = running.end()
    assert finished.code == 130, finished
    assert "Traceback" not in finished.err
    assert cli.wait_until_gone() == {}


def test_an_interrupt_of_a_run_on_a_stack_of_others_leaves_the_task_running(cli: Cli) -> None:
    """S50: the task goes on, and the run says how to follow and to cancel it."""
    with cli.dev():
        running = cli.start("run", "--id", "goes-on", "echo started; sleep 1000")
        running.wait_for("started", stream="out")
        running.signal(signal.SIGINT)
        finished = running.end()
        assert finished.code == 130, finished
        assert "taskrunner logs -f goes-on" in finished.err
        assert "taskrunner cancel goes-on" in finished.err
        assert cli.json("show", "goes-on")["status"] == "running"
        follower = cli.start("events", "-f", "goes-on")
        follower.wait_for("session running", stream="out")
        assert cli.run("cancel", "goes-on").code == 0
        assert "cancelled" in follower.end().out
        assert cli.json("show", "goes-on")["status"] == "cancelled"
    assert cli.processes() == {}


def test_the_last_run_on_a_stack_that_ends_with_it_cancels_its_task(cli: Cli, gate: Gate) -> None:
    """S50: whoever came second must not leave a task behind that nobody runs."""
    first = cli.start("run", f"echo one; read line < {gate}")
    first.wait_for("one", stream="out")
    second = cli.start("run", "echo two; sleep 1000")
    second.wait_for("two", stream="out")
    gate.open()
    assert first.end().code == 0
    second.signal(signal.SIGINT)
    finished = second.end()
    assert finished.code == 130, finished
    assert "cancelled in " in finished.err
    assert cli.processes() == {}


def test_a_stack_whose_run_was_killed_ends_by_itself(cli: Cli) -> None:
    """S50: kill -9 of the run lets go of its lock; the workspace stays for the next stack, which ends the task."""
    running = cli.start("run", "--id", "orphan", "echo begun; sleep 3; echo ended")
    running.wait_for("begun", stream="out")
    stack = json.loads((cli.home / "stack.json").read_text())["pid"]
    pidfd = os.pidfd_open(stack)
    running.signal(signal.SIGKILL)
    running.end()
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)
    assert not [command for command in cli.processes().values() if "start-dev" in command or "bin/postgres" in command]
    with cli.dev():
        assert cli.run("logs", "-f", "orphan").out == "begun\nended\n"
        assert cli.json("show", "orphan")["status"] == "completed"


def test_a_run_tells_of_the_task_that_a_killed_one_left(cli: Cli, gate: Gate) -> None:
    """S50: nothing is left behind without a word."""
    running = cli.start("run", "--id", "orphan", f"echo begun; read line < {gate}")
    running.wait_for("begun", stream="out")
    pidfd = os.pidfd_open(json.loads((cli.home / "stack.json").read_text())["pid"])
    running.signal(signal.SIGKILL)
    running.end()
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)
    short = cli.run("run", "echo short")
    assert short.code == 0, short
    told = "1 other task is unfinished (orphan); it goes on while a stack runs: taskrunner dev"
    assert told in short.err.splitlines()
    gate.open()
    with cli.dev():
        followed = cli.run("logs", "-f", "orphan")
        assert followed.out == "begun\n", followed
        assert cli.json("show", "orphan")["status"] == "completed"
    assert "unfinished" not in cli.run("run", "echo again").err


def test_a_run_survives_the_kill_of_the_stack_that_it_started(cli: Cli, gate: Gate) -> None:
    """S21: kill -9 of API, worker and servers mid-session; the run brings them back and sees the same session's end."""
    running = cli.start("run", f"echo before; read line < {gate}; echo $line")
    running.wait_for("before", stream="out")
    stack = json.loads((cli.home / "stack.json").read_text())["pid"]
    os.kill(stack, signal.SIGKILL)
    running.wait_for("Starting the embedded stack(?s:.*)Starting the embedded stack", stream="err")
    gate.open("after")
    finished = running.end()
    assert finished.code == 0, finished
    assert finished.out == "before\nafter\n"
    assert cli.processes() == {}
