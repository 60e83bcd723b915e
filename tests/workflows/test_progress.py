"""S41: a task can be understood from the Temporal UI alone."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowFailureError, WorkflowHandle

from messages import names
from messages.activities import LastLook
from messages.errors import ErrorType
from messages.statuses import SessionStatus, TaskStep
from messages.tasks import TaskProgress
from tests.workflows.conftest import Scene, finished, lost, provisioning_failed, ready, refused

MakeScene = Callable[..., Scene]
WAITED_FOR = {
    "provision_workspace": (TaskStep.PROVISIONING, "host h to create"),
    "create_session": (TaskStep.CREATING_SESSION, "to answer and to take the session"),
    "release_workspace": (TaskStep.RELEASING, "host h to save the result and to remove"),
}


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """Return the current details as the UI gets them."""
    answer = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return answer.current_details


class Held:
    """A hook that keeps an activity from ending."""

    def __init__(self) -> None:
        self.inside = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, _: Any) -> None:
        self.inside.set()
        await self.go_on.wait()


@pytest.mark.parametrize("activity", WAITED_FOR)
async def test_a_task_in_an_activity_says_what_it_waits_for_and_since_when(
    real_scene: MakeScene, activity: str
) -> None:
    """S41"""
    s = real_scene()
    s.world.hooks[activity] = held = Held()
    async with s.worker():
        handle = await s.start(start_signal=names.WORKSPACE_READY, start_signal_args=[ready(s.task)])
        if activity == "release_workspace":
            await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await held.inside.wait()
        told = await details(handle)
        await handle.terminate()
        held.go_on.set()
    step, waited_for = WAITED_FOR[activity]
    assert told.startswith(f"**{step.value}**: waits for ")
    assert waited_for in told
    assert " UTC" in told.partition(", since ")[2]
    assert f"Workspace `{names.compute_name(s.task.workspace_id, 1)}` on backend `local`" in told
    assert "Last error" not in told


@pytest.mark.parametrize(
    ("readiness", "waited_for"), [("callback", "the callback of tr-"), ("immediate", "the end of session s-")]
)
async def test_a_task_that_waits_says_until_when(real_scene: MakeScene, readiness: str, waited_for: str) -> None:
    """S41"""
    s = real_scene(readiness=readiness, session_timeout="1h")
    async with s.worker():
        handle = await s.start()
        await s.event("timer_started")
        told = await details(handle)
        snapshot = await handle.query(names.STATUS_QUERY, result_type=TaskProgress)
        await handle.terminate()
    assert told.startswith(f"**{snapshot.step.value}**: waits for {waited_for}")
    assert " at http://127.0.0.1:1." in told
    assert snapshot.until is not None
    assert snapshot.since < snapshot.until
    clock = "%Y-%m-%d %H:%M:%S UTC"
    assert f", since {snapshot.since:{clock}}, until {snapshot.until:{clock}} at the latest.\n" in told


FAILURES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "provisioning failed": (
        names.PROVISIONING_FAILED,
        lambda task: provisioning_failed(task, "apt failed"),
        "apt failed",
    ),
    "workspace lost": (names.WORKSPACE_LOST, lambda task: lost(task, "it was killed"), "it was killed"),
    "session failed": (
        names.SESSION_FINISHED,
        lambda task: finished(task, status=SessionStatus.FAILED, exit_code=3, error="exited with 3"),
        "the session failed: exited with 3",
    ),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_a_task_that_waits_for_its_release_still_says_why_it_failed(real_scene: MakeScene, how: str) -> None:
    """S41: a host may stay away for long, and until then the reason is nowhere else in the UI."""
    s = real_scene(readiness="immediate" if how == "session failed" else "callback")
    s.world.hooks["release_workspace"] = held = Held()
    signal, make, told = FAILURES[how]
    async with s.worker():
        handle = await s.start()
        await handle.signal(signal, make(s.task))
        await held.inside.wait()
        said = await details(handle)
        await handle.terminate()
        held.go_on.set()
    assert said.startswith("**releasing**")
    assert f"Last error: {told}" in said


async def test_the_end_keeps_the_last_error(scene: MakeScene) -> None:
    """S41"""
    s = scene(readiness="immediate")
    s.world.hooks["preflight_task"] = refused(ErrorType.INVALID_TASK, "API_KEY is not set")
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        told = await details(handle)
    assert "waits for nothing: the task has ended" in told
    assert "Last error: API_KEY is not set" in told


async def test_every_activity_and_every_timer_has_a_summary(scene: MakeScene) -> None:
    """S41: of a task that took as many ways as one can."""
    s = scene(session_timeout="30m")

    async def ready_meanwhile(_: Any) -> LastLook:
        await s.handles[0].signal(names.WORKSPACE_READY, ready(s.task))
        return LastLook(error="connection refused")

    s.world.hooks["look_once_more"] = ready_meanwhile
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    history = await handle.fetch_history()
    kinds: list[str] = []
    for event in history.events:
        kind = event.WhichOneof("attributes").removesuffix("_event_attributes")
        if kind in {"activity_task_scheduled", "timer_started", "marker_recorded"}:
            kinds.append(kind)
            assert event.user_metadata.summary.data, event
    assert set(s.world.calls) == {
        "preflight_task",
        "provision_workspace",
        "look_once_more",
        "create_session",
        "stop_session",
        "release_workspace",
        "finish_task",
    }
    assert kinds.count("timer_started") == 2
    assert kinds.count("marker_recorded") == len({"preflight_task", "create_session", "finish_task"}), "they are local"
    assert kinds.count("activity_task_scheduled") + kinds.count("marker_recorded") == len(s.world.calls)
