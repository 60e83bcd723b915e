"""Sessions of a harness: one activity follows the run, and the workflow ends it with its own wait."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from messages import names
from messages.activities import SessionCreated, SessionRequest
from messages.errors import ErrorType
from messages.signals import SessionFinished
from messages.statuses import SessionStatus, TaskStatus
from tests.workflows.conftest import Hanging, Scene, beating, finished, lost, ready, refused

MakeScene = Callable[..., Scene]

HARNESS = {"kind": "harnessd", "command": ["harnessd"]}


def harness_scene(make: MakeScene, **template: Any) -> Scene:
    s = make(agent=HARNESS, **template)

    async def created(_: Any) -> SessionCreated:
        return SessionCreated(run_id="run_1")

    s.world.hooks["create_session"] = created
    return s


async def test_the_runs_end_is_the_sessions(scene: MakeScene) -> None:
    s = harness_scene(scene)
    asked: list[SessionRequest] = []

    async def ends(request: SessionRequest) -> SessionFinished:
        asked.append(request)
        return finished(s.task, exit_code=None, summary="done")

    s.world.hooks["follow_session"] = ends
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        result = await handle.result()
    assert (result.summary, result.exit_code) == ("done", None)
    assert [request.run_id for request in asked] == ["run_1"]
    assert "stop_session" not in s.world.calls


async def test_other_agents_are_not_followed(scene: MakeScene) -> None:
    s = scene(readiness="immediate")
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert "follow_session" not in s.world.calls


async def test_a_run_that_cannot_be_followed_is_interrupted(scene: MakeScene) -> None:
    """S28"""
    s = harness_scene(scene)
    s.world.hooks["follow_session"] = refused(ErrorType.SESSION_REFUSED, "the harness refused: 401")
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == ErrorType.SESSION_INTERRUPTED
    assert "401" in failure.value.cause.message


async def test_a_workspace_that_is_lost_ends_session_and_follower(real_scene: MakeScene) -> None:
    """S28"""
    s, following = harness_scene(real_scene), Hanging()
    s.world.hooks["follow_session"] = following
    async with s.worker(**beating()), asyncio.timeout(30):
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await following.began.wait()
        await handle.signal(names.WORKSPACE_LOST, lost(s.task))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        await following.cancelled.wait()
    assert s.world.released is not None
    assert s.world.released.outcome.session is not None
    assert s.world.released.outcome.session.status is SessionStatus.INTERRUPTED


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_run_that_is_to_end_is_told_so_and_no_longer_followed(real_scene: MakeScene, how: str) -> None:
    """S26"""
    s, following = harness_scene(real_scene, session_timeout="1s" if how == "deadline" else "1h"), Hanging()
    told: list[SessionRequest] = []

    async def stop(request: SessionRequest) -> SessionFinished:
        told.append(request)
        return finished(s.task, status=SessionStatus.CANCELLED, exit_code=None, error="cancelled")

    s.world.hooks |= {"follow_session": following, "stop_session": stop}
    async with s.worker(**beating()), asyncio.timeout(30):
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await following.began.wait()
        if how == "cancel":
            await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        await following.cancelled.wait()
    assert [request.run_id for request in told] == ["run_1"]
    assert s.world.final is not None
    expected = TaskStatus.CANCELLED if how == "cancel" else TaskStatus.FAILED
    assert s.world.final.outcome.status is expected
