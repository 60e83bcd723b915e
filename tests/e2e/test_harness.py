"""Whole tasks whose agent is a harness server: from its start to the branch, and through what can go wrong."""

import time
from pathlib import Path

import pytest

from messages.errors import ErrorType
from messages.statuses import EventKind, FailureSource, SessionStatus, TaskStatus, TaskStep
from tests.support.git_repositories import files_of
from tests.support.harness import HarnessDouble
from tests.support.stack import Gate, Stack, folder_of
from workers.worker import GRACEFUL_SHUTDOWN

pytestmark = pytest.mark.timeout(120)

HOST = "harness-host"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("readiness", ["callback", "probe"])
async def test_a_task_runs_in_a_harness_and_its_change_is_kept(
    stack: Stack, repository: Path, tmp_path: Path, readiness: str
) -> None:
    """S01, S27, S44"""
    double = HarnessDouble(tmp_path / "harness")
    template = stack.template(backend="worktree", agent=double.agent(), readiness=readiness)
    task = await stack.submit(
        "say Working\nrun echo made > made-by-agent\nsay All done",
        template=template,
        repository=(repository, HOST),
    )
    view = await stack.completed(task)
    assert await stack.output(task) == "Working\nAll done\n"
    assert view.session is not None
    assert (view.session.summary, view.session.exit_code) == ("All done", None)
    assert files_of(repository, f"taskrunner/{task}")["made-by-agent"] == "made"
    assert double.posts == [view.session.id]
    steps = [step.step for step in view.steps]
    assert steps.index(TaskStep.WAITING_FOR_READY) < steps.index(TaskStep.SESSION_RUNNING)


@pytest.mark.usefixtures("worker")
async def test_a_harness_that_exits_at_start_fails_the_task_at_once_with_its_words(
    stack: Stack, tmp_path: Path, home: Path
) -> None:
    """S14: 600 s before the timeout, within 2 s, and never as a refused connection at the session."""
    double = HarnessDouble(tmp_path / "harness", "exit at start")
    task = await stack.submit("say x", template=stack.template(backend="local", agent=double.agent()))
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.failure is not None
    assert view.failure.source is FailureSource.BOOTSTRAP
    assert "the harness exited with 1 before it was ready" in view.failure.error
    assert "set OPENAI_API_KEY" in view.failure.detail
    assert view.session is None
    assert view.started_at is not None
    assert view.finished_at is not None
    assert (view.finished_at - view.started_at).total_seconds() < 5
    assert view.workspace is not None
    assert view.workspace.boot_log[-1].step == "harness"
    failures = [event for event in await stack.events(task) if event.kind is EventKind.WORKSPACE_PROVISION_FAILED]
    assert len(failures) == 1
    assert not folder_of(home, view).exists()


@pytest.mark.usefixtures("worker")
async def test_a_harness_that_dies_at_work_interrupts_the_session_and_is_cleaned_up(
    stack: Stack, gate: Gate, tmp_path: Path, home: Path
) -> None:
    """S28"""
    double = HarnessDouble(tmp_path / "harness")
    template = stack.template(backend="local", agent=double.agent())
    task = await stack.submit(f"say begun\nread {gate}\ndie", template=template)
    await stack.until(task, lambda view: view.session and view.session.output_bytes)
    gate.open()
    view = await stack.ended(task)
    assert await stack.error_type(task) == ErrorType.SESSION_INTERRUPTED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert "the harness exited with 7" in (view.error or "")
    assert not folder_of(home, view).exists()


@pytest.mark.usefixtures("worker")
async def test_cancelling_a_task_ends_its_run(stack: Stack, tmp_path: Path) -> None:
    """S26"""
    double = HarnessDouble(tmp_path / "harness")
    task = await stack.submit("say begun\nhang", template=stack.template(backend="local", agent=double.agent()))
    await stack.until(task, lambda view: view.session and view.session.output_bytes)
    await stack.cancel(task)
    view = await stack.ended(task)
    assert view.status is TaskStatus.CANCELLED
    assert view.session is not None
    assert view.session.status is SessionStatus.CANCELLED
    assert double.cancels == 1


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_run_is_followed_on_by_the_next_worker(stack: Stack, gate: Gate, tmp_path: Path, how: str) -> None:
    """S21: one run, and every line of it once. A worker that is told to stop does not wait for the run's end."""
    double = HarnessDouble(tmp_path / "harness")
    home = tmp_path / "home"
    template = stack.template(backend="local", agent=double.agent())
    async with stack.worker("other-host", home) as worker:
        task = await stack.submit(f"say one\nread {gate}\nsay two", template=template)
        await stack.until(task, lambda view: view.session and view.session.output_bytes)
        began = time.monotonic()
        await (worker.kill() if how == "kill" else worker.stop())
        assert time.monotonic() - began < GRACEFUL_SHUTDOWN.total_seconds() / 2
    gate.open()
    async with stack.worker("other-host", home):
        view = await stack.completed(task, timeout=60)
    assert await stack.output(task) == "one\ntwo\n"
    assert view.session is not None
    assert double.posts == [view.session.id]
