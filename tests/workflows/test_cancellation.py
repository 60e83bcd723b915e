"""Cancelling a task: at any step it ends Canceled, and what exists of its workspace is released."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError

from messages import names
from messages.errors import ErrorType
from messages.statuses import SessionStatus, TaskStatus
from tests.workflows.conftest import Scene, finished, ready, refused

MakeScene = Callable[..., Scene]
STEPS = ["preflight_task", "provision_workspace", "look_once_more", "create_session", "release_workspace"]
SHORT_STEPS = ["preflight_task", "create_session"]
"""Tried by the workflow's own worker first."""


@pytest.mark.parametrize("step", STEPS)
async def test_cancelling_during_an_activity_ends_cancelled_and_released(real_scene: MakeScene, step: str) -> None:
    """S26"""
    s = real_scene(runtime_config={"provision_timeout_seconds": 1})
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: Any) -> Any:
        if activity.info().is_local:
            raise ApplicationError("another host has it", type=ErrorType.HOST_AWAY)
        del s.world.hooks[step]
        inside.set()
        await go_on.wait()
        answer = await getattr(s.world, step)(request)
        s.world.calls.pop()
        return answer

    s.world.hooks[step] = hold
    async with s.worker():
        handle = await s.start()
        if step != "look_once_more":
            await handle.signal(names.WORKSPACE_READY, ready(s.task))
        if step == "release_workspace":
            await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await inside.wait()
        await handle.cancel()
        if step != "release_workspace":  # which a cancellation leaves alone
            await s.event("activity_task_cancel_requested")
        if step in {"provision_workspace", "create_session"}:
            # What is being made must be known, or gone, before it is released.
            types = await s.event_types()
            assert "activity_task_scheduled" not in types[types.index("activity_task_cancel_requested") :]
        go_on.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert (await handle.describe()).status.name == "CANCELED"  # type: ignore[union-attr]
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.CANCELLED
    assert s.world.final.outcome.error
    # Nothing was provisioned while the task was only being checked, so there is nothing to release.
    assert s.world.calls.count("release_workspace") == (0 if step == "preflight_task" else 1)


@pytest.mark.parametrize("step", SHORT_STEPS)
async def test_cancelling_during_the_first_try_of_a_short_step_ends_cancelled(real_scene: MakeScene, step: str) -> None:
    """S26"""
    s = real_scene()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: Any) -> Any:
        assert activity.info().is_local
        inside.set()
        await go_on.wait()
        del s.world.hooks[step]
        return await getattr(s.world, step)(_)

    s.world.hooks[step] = hold
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await inside.wait()
        await handle.cancel()
        go_on.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.CANCELLED
    # It is heard of with the next workflow task, when the workspace may be on its way: that is released.
    assert s.world.calls.count("release_workspace") == 1


@pytest.mark.parametrize("moment", ["waiting_for_ready", "session_running"])
async def test_cancelling_during_a_wait_ends_cancelled_and_released(scene: MakeScene, moment: str) -> None:
    """S26"""
    s = scene()
    async with s.worker():
        handle = await s.start()
        if moment == "session_running":
            await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await s.environment.sleep(timedelta(seconds=5))
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.CANCELLED
    assert s.world.calls.count("stop_session") == (1 if moment == "session_running" else 0)
    assert s.world.calls.count("release_workspace") == 1
    session = s.world.final.outcome.session
    assert (session.status if session else None) == (SessionStatus.CANCELLED if moment == "session_running" else None)


async def test_nothing_resurrects_a_cancelled_task(scene: MakeScene) -> None:
    """S26"""
    s = scene()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: Any) -> Any:
        del s.world.hooks["release_workspace"]
        inside.set()
        await go_on.wait()
        return await s.world.release_workspace(s.world.released)  # type: ignore[arg-type]

    s.world.hooks["release_workspace"] = hold
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=1))
        await handle.cancel()
        await inside.wait()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        go_on.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert "create_session" not in s.world.calls


async def test_a_session_that_overstays_is_stopped_and_the_task_fails(scene: MakeScene) -> None:
    s = scene(readiness="immediate", session_timeout="30m")
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.error_type is ErrorType.SESSION_TIMED_OUT
    assert "within 30m" in s.world.final.outcome.error
    assert s.world.calls.count("stop_session") == 1


async def test_a_session_that_ended_unheard_before_its_deadline_counts_as_it_ended(scene: MakeScene) -> None:
    s = scene(readiness="immediate", session_timeout="30m")

    async def had_ended(_: Any) -> Any:
        return finished(s.task)

    s.world.hooks["stop_session"] = had_ended
    async with s.worker():
        handle = await s.start()
        await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.COMPLETED


async def test_a_result_that_cannot_be_saved_fails_the_task_and_says_so(scene: MakeScene) -> None:
    """S44"""
    s = scene(readiness="immediate")
    s.world.hooks["release_workspace"] = refused(ErrorType.RESULT_NOT_SAVED, "the bundle is larger than 50 MB")
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.FAILED
    assert "larger than 50 MB" in s.world.final.outcome.error
    assert s.world.final.leak_suspected


async def test_an_overdue_session_that_cannot_be_stopped_is_still_overdue(scene: MakeScene) -> None:
    s = scene(readiness="immediate", session_timeout="30m")
    s.world.hooks["stop_session"] = refused(ErrorType.WORKSPACE_UNREACHABLE, "no answer")
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.error_type is ErrorType.SESSION_TIMED_OUT
    assert "within 30m" in s.world.final.outcome.error


async def test_a_cancelled_task_does_not_hide_that_its_result_was_not_saved(scene: MakeScene) -> None:
    """S44"""
    s = scene()
    s.world.hooks["release_workspace"] = refused(ErrorType.RESULT_NOT_SAVED, "the bundle is larger than 50 MB")
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=5))
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.CANCELLED
    assert "cancelled" in s.world.final.outcome.error
    assert "larger than 50 MB" in s.world.final.outcome.error


async def test_what_preflight_refuses_fails_without_touching_a_workspace(scene: MakeScene) -> None:
    """S30"""
    s = scene()
    s.world.hooks["preflight_task"] = refused(ErrorType.INVALID_TASK, "ANTHROPIC_API_KEY is not set")
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.calls == ["preflight_task", "finish_task"]
    assert s.world.final is not None
    assert s.world.final.outcome.failure is not None
    assert s.world.final.outcome.failure.source == "preflight"


@pytest.mark.parametrize("step", ["preflight_task", "release_workspace"])
async def test_a_step_that_could_not_be_done_in_time_is_called_neither_invalid_nor_a_host_that_is_away(
    scene: MakeScene, step: str
) -> None:
    s = scene(readiness="immediate")

    async def too_late(_: Any) -> Any:
        raise ApplicationError("PostgreSQL did not answer", non_retryable=True)

    s.world.hooks[step] = too_late
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.error_type is ErrorType.UNAVAILABLE


async def test_a_task_without_a_cache_and_with_one_takes_the_same_steps(scene: MakeScene) -> None:
    """S42: evicted after every step, so each is replayed."""
    s = scene()
    async with s.worker(max_cached_workflows=0):
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=5))
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls == [*STEPS[:2], "create_session", "release_workspace", "finish_task"]


async def test_eviction_while_waiting_is_not_taken_for_a_cancellation(scene: MakeScene) -> None:
    s = scene()
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=5))
    assert (await handle.describe()).status.name == "RUNNING"  # type: ignore[union-attr]
    assert "release_workspace" not in s.world.calls
    await handle.terminate()
