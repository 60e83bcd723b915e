"""kill -9 of the workspace agent, at every step: noticed at once, told clearly, cleaned up, and what it did is kept."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from messages.errors import ErrorType
from messages.statuses import (
    EventKind,
    FailureSource,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.views import TaskView
from tests.support.git_repositories import files_of, git, make_dirty, snapshot
from tests.support.stack import Gate, Stack, agent_of, folder_of, kill_agent, unique

pytestmark = pytest.mark.timeout(90)

HOST = "agent-crash-host"
SOON_SECONDS = 5.0
"""Within this the task has failed; its own timeouts are 10 minutes and more."""


async def failed_soon(stack: Stack, view: TaskView, home: Path) -> TaskView:
    """Kill the task's agent and return the task as it ended; nothing of its workspace may be left then."""
    killed_at = time.monotonic()
    await asyncio.to_thread(kill_agent, view)
    view = await stack.ended(view.id, timeout=30)
    assert time.monotonic() - killed_at < SOON_SECONDS
    assert view.status is TaskStatus.FAILED
    assert view.workspace is not None
    assert view.workspace.status is WorkspaceStatus.REMOVED
    assert not folder_of(home, view).exists()
    assert await stack.left_over() == {}
    return view


def failed_before_its_session(view: TaskView) -> None:
    assert view.session is None
    assert view.error is not None
    assert "killed by signal 9" in view.error
    assert view.failure is not None
    assert view.failure.source is FailureSource.EXIT
    assert view.failure.error
    assert "listens on" in view.failure.detail, "the agent's log"
    assert len(view.failure.detail) <= 8192


@pytest.mark.parametrize("kind", ["local", "worktree"])
@pytest.mark.usefixtures("worker")
async def test_killed_while_the_setup_runs(
    stack: Stack, home: Path, repository: Path, tmp_path: Path, kind: str
) -> None:
    """S14: failed at once with the log's tail; what the setup had started is gone with it."""
    begun = Gate(tmp_path)
    setup = ["true", f"setsid sleep 600 & echo from-the-setup > {begun}; sleep 600"]
    template = stack.template(backend=kind, readiness="callback", setup=setup)
    task = await stack.submit("true", template=template, repository=(repository, HOST))
    await begun.written()
    view = await stack.at_step(task, TaskStep.WAITING_FOR_READY)
    view = await failed_soon(stack, view, home)
    failed_before_its_session(view)
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.FAILED
    events = [event.kind for event in await stack.events(task)]
    assert events.count(EventKind.WORKSPACE_PROVISION_FAILED) == 1
    assert events.count(EventKind.VERDICT) == 1
    assert git(repository, "for-each-ref", "refs/heads/taskrunner") == ""
    begun.close()


@pytest.mark.usefixtures("worker")
async def test_killed_between_becoming_ready_and_telling_us(
    stack: Stack, home: Path, repository: Path, tmp_path: Path
) -> None:
    """S14: the agent is up and waits for its API, which it cannot reach."""
    template = stack.template(backend="worktree", readiness="callback")
    other = tmp_path / "home"
    async with stack.worker(f"{HOST}-cut-off", other, TASKRUNNER_PUBLIC_URL="http://127.0.0.1:9"):
        task = await stack.submit("true", template=template, repository=(repository, f"{HOST}-cut-off"))
        view = await stack.at_step(task, TaskStep.WAITING_FOR_READY)
        assert await stack.agent_says(view) == "ok"
        view = await failed_soon(stack, view, other)
    failed_before_its_session(view)


async def test_killed_before_its_session_is_asked_for(stack: Stack, repository: Path, tmp_path: Path) -> None:
    """S14: never told as a refused connection."""
    home, task = tmp_path / "home", unique("t")
    async with stack.worker(f"{HOST}-stops", home, stops={task: "session not asked for"}) as worker:
        await stack.submit("true", id=task, repository=(repository, f"{HOST}-stops"))
        await worker.said("^stopped: ")
        view = await stack.view(task)
        await asyncio.to_thread(kill_agent, view)
        (home / f"{task}.go").write_text("go on\n")
        view = await stack.ended(task)
        assert not folder_of(home, view).exists()
    assert view.status is TaskStatus.FAILED
    assert view.error is not None
    assert "killed by signal 9" in view.error
    assert "refused" not in view.error
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED


@pytest.mark.parametrize("kind", ["local", "worktree"])
@pytest.mark.usefixtures("worker")
async def test_killed_during_the_session(stack: Stack, home: Path, repository: Path, gate: Gate, kind: str) -> None:
    """S28, S44: interrupted, the output so far and the change so far kept, every process gone, daemons included."""
    make_dirty(repository)
    before = snapshot(repository)
    prompt = (
        "echo half > done; git config user.name A; git config user.email a@example.org; git add done;"
        " git commit -qm part; echo rest > uncommitted;"
        f" setsid sh -c 'sleep 600' & (setsid env -u TASKRUNNER_COMPUTE sleep 600 &) ; echo said; read line < {gate}"
    )
    task = await stack.submit(prompt, backend=kind, repository=(repository, HOST))
    view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
    view = await failed_soon(stack, view, home)
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert view.session.error is not None
    assert "killed by signal 9" in view.session.error
    assert view.error is not None
    assert "interrupted" in view.error
    assert "killed by signal 9" in view.error
    assert await stack.error_type(task) == ErrorType.SESSION_INTERRUPTED
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.READY
    assert view.failure is None
    assert await stack.output(task) == "said\n"
    assert [event.current for event in await stack.events(task) if event.kind is EventKind.SESSION_STATUS] == [
        "starting",
        "running",
        "interrupted",
    ]

    assert view.result is not None
    assert view.result.files_changed == 2
    if kind == "worktree":
        files = files_of(repository, f"taskrunner/{task}")
        assert (files["done"], files["uncommitted"]) == ("half", "rest")
        git(repository, "branch", "-D", f"taskrunner/{task}")
    after = snapshot(repository)
    assert {path: after.get(path) for path in before if not path.startswith(".git")} == {
        path: content for path, content in before.items() if not path.startswith(".git")
    }
    assert git(repository, "branch", "--format=%(refname:short)").split() == ["main", "other"]
    assert git(repository, "worktree", "list").count("\n") == 0


@pytest.mark.usefixtures("worker")
async def test_a_program_that_is_killed_fails_its_session_and_not_its_workspace(
    stack: Stack, home: Path, repository: Path
) -> None:
    task = await stack.submit("echo said; kill -9 $$", repository=(repository, HOST))
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert (view.session.status, view.session.exit_code) == (SessionStatus.FAILED, 137)
    assert view.error == "the session failed: killed by SIGKILL"
    assert await stack.output(task) == "said\n"


@pytest.mark.usefixtures("worker")
async def test_a_session_that_kills_its_own_agent_is_interrupted(stack: Stack, home: Path, repository: Path) -> None:
    """S28: whoever kills it."""
    task = await stack.submit("echo half > done; kill -9 $PPID; sleep 600", repository=(repository, HOST))
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert files_of(repository, f"taskrunner/{task}")["done"] == "half"
    assert not folder_of(home, view).exists()


@pytest.mark.parametrize("kind", ["local", "worktree"])
@pytest.mark.usefixtures("worker")
async def test_an_agent_that_freezes_is_interrupted_and_cleaned_up(
    stack: Stack, home: Path, repository: Path, kind: str
) -> None:
    """S28, S44: it has not ended, it only says nothing any more. What was done until then is kept."""
    template = stack.template(backend=kind, heartbeat_interval="1s")
    task = await stack.submit(
        "echo half > done; echo said; sleep 600", template=template, repository=(repository, HOST)
    )
    view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
    frozen_at = time.monotonic()
    os.kill(agent_of(view).pid, signal.SIGSTOP)
    view = await stack.at_step(task, TaskStep.RELEASING)
    # 3 heartbeats, one question that is not answered within 3 s, and what a busy machine needs
    assert 2 < time.monotonic() - frozen_at < 15
    view = await stack.ended(task, timeout=60)
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert "went silent" in (view.session.error or "")
    assert "its agent does not answer" in (view.error or "")
    assert view.result is not None
    assert view.workspace is not None
    assert view.workspace.status is WorkspaceStatus.REMOVED
    assert not folder_of(home, view).exists()
    assert await stack.left_over() == {}
    if kind == "worktree":
        assert files_of(repository, f"taskrunner/{task}")["done"] == "half"
        git(repository, "branch", "-D", f"taskrunner/{task}")


@pytest.mark.usefixtures("worker")
async def test_heartbeats_that_come_leave_nothing_in_the_history(stack: Stack) -> None:
    """S28: however many of them a session outlasts."""
    template = stack.template(backend="local", heartbeat_interval="1s")
    task = await stack.submit("sleep 6", template=template)
    await stack.completed(task)
    assert await stack.signals(task) == ["session_finished"]
    assert len(await stack.history(task)) <= 40
