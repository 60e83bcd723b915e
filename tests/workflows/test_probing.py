"""Readiness by probe: one activity asks, and races with the callbacks and the deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from messages import names
from messages.activities import LastLook
from messages.errors import ErrorType
from messages.signals import ProvisioningFailed
from messages.statuses import FailureSource, TaskStatus, Verdict
from tests.workflows.conftest import Hanging, Scene, beating, finished, lost, provisioning_failed, ready, refused

MakeScene = Callable[..., Scene]


async def test_a_workspace_that_answers_the_probe_is_ready(scene: MakeScene) -> None:
    s = scene(readiness="probe")
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("probe_workspace") == 1
    assert s.world.calls.count("create_session") == 1
    assert "look_once_more" not in s.world.calls


async def test_a_workspace_that_is_ready_before_the_wait_is_not_probed(scene: MakeScene) -> None:
    """S02"""
    s = scene(readiness="probe")
    handle = await s.start(start_signal=names.WORKSPACE_READY, start_signal_args=[ready(s.task)])
    await handle.signal(names.SESSION_FINISHED, finished(s.task))
    async with s.worker():
        await handle.result()
    assert "probe_workspace" not in s.world.calls


@pytest.mark.parametrize(
    ("signal", "make", "verdict", "source"),
    [
        (names.WORKSPACE_READY, ready, Verdict.READY, None),
        (names.PROVISIONING_FAILED, provisioning_failed, Verdict.FAILED, FailureSource.BOOTSTRAP),
        (names.WORKSPACE_LOST, lost, Verdict.FAILED, FailureSource.EXIT),
    ],
)
async def test_a_signal_that_comes_first_wins_and_ends_the_probe(
    real_scene: MakeScene,
    signal: str,
    make: Callable[..., Any],
    verdict: Verdict,
    source: FailureSource | None,
) -> None:
    """S06: whoever loses is cancelled."""
    s, probe = real_scene(readiness="probe"), Hanging()
    s.world.hooks["probe_workspace"] = probe
    async with s.worker(**beating()):
        handle = await s.start()
        async with asyncio.timeout(30):
            await probe.began.wait()
            await handle.signal(signal, make(s.task))
            if verdict is Verdict.READY:
                await handle.signal(names.SESSION_FINISHED, finished(s.task))
                await handle.result()
            else:
                with pytest.raises(WorkflowFailureError):
                    await handle.result()
            await probe.cancelled.wait()
    assert s.world.released is not None
    assert s.world.released.outcome.verdict is verdict
    failure = s.world.released.outcome.failure
    assert (failure and failure.source) == source
    assert s.world.calls.count("release_workspace") == 1


async def test_signals_after_the_probe_change_nothing(scene: MakeScene) -> None:
    """S05, S06"""
    s = scene(readiness="probe")
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=5))
        await handle.signal(names.PROVISIONING_FAILED, provisioning_failed(s.task))
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.COMPLETED


async def test_a_workspace_that_never_answers_fails_at_the_deadline_with_the_last_look(real_scene: MakeScene) -> None:
    """S08"""
    s, probe = real_scene(readiness="probe", runtime_config={"provision_timeout_seconds": 2}), Hanging()
    s.world.hooks["probe_workspace"] = probe
    async with s.worker(**beating()):
        handle = await s.start()
        async with asyncio.timeout(30):
            with pytest.raises(WorkflowFailureError) as failure:
                await handle.result()
            await probe.cancelled.wait()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.message.endswith("never became ready: connection refused")
    history = await handle.fetch_history()
    times = {e.WhichOneof("attributes"): e.event_time.ToDatetime() for e in history.events}
    waited = times["workflow_execution_failed_event_attributes"] - times["timer_started_event_attributes"]
    assert timedelta(seconds=2) <= waited <= timedelta(seconds=7)
    assert s.world.released is not None
    assert s.world.released.outcome.verdict is Verdict.TIMED_OUT


async def test_a_probe_that_succeeds_during_the_last_look_wins(real_scene: MakeScene) -> None:
    """S06"""
    s = real_scene(readiness="probe", runtime_config={"provision_timeout_seconds": 1})
    answers = asyncio.Event()

    async def answers_late(_: Any) -> LastLook:
        await answers.wait()
        return LastLook(ready=True)

    async def sees_nothing(_: Any) -> LastLook:
        answers.set()
        probe = None
        async for event in s.handles[0].fetch_history_events(wait_new_event=True):
            if event.activity_task_scheduled_event_attributes.activity_type.name == "probe_workspace":
                probe = event.event_id
            if probe and event.activity_task_completed_event_attributes.scheduled_event_id == probe:
                break
        return LastLook(error="connection refused")

    s.world.hooks |= {"probe_workspace": answers_late, "look_once_more": sees_nothing}
    async with s.worker():
        handle = await s.start()
        async with asyncio.timeout(30):
            await handle.signal(names.SESSION_FINISHED, finished(s.task))
            await handle.result()
    assert s.world.calls.count("look_once_more") == 1


async def test_an_agent_that_says_it_failed_ends_the_wait(scene: MakeScene) -> None:
    """S04"""
    s = scene(readiness="probe")

    async def failed(_: Any) -> LastLook:
        said = ProvisioningFailed(workspace_id=s.task.workspace_id, attempt=1, error="setup[0]", log_tail="uv?")
        return LastLook(failed=said, error="setup[0]")

    s.world.hooks["probe_workspace"] = failed
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.failure is not None
    assert (s.world.released.outcome.failure.error, s.world.released.outcome.failure.detail) == ("setup[0]", "uv?")


@pytest.mark.parametrize("hook", [refused(ErrorType.BACKEND_UNUSABLE, "no such backend")])
async def test_a_probe_that_cannot_work_leaves_the_wait_to_the_callback(
    scene: MakeScene, hook: Callable[[Any], Awaitable[Any]]
) -> None:
    s = scene(readiness="probe")
    s.world.hooks["probe_workspace"] = hook
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=5))
        assert (await handle.query(names.STATUS_QUERY))["last_error"] == "no such backend"
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("create_session") == 1


async def test_cancelling_the_task_ends_the_probe(real_scene: MakeScene) -> None:
    """S26"""
    s, probe = real_scene(readiness="probe"), Hanging()
    s.world.hooks["probe_workspace"] = probe
    async with s.worker(**beating()):
        handle = await s.start()
        async with asyncio.timeout(30):
            await probe.began.wait()
            await handle.cancel()
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            await probe.cancelled.wait()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.CANCELLED


async def test_the_wait_goes_on_where_it_was_after_the_workflow_was_evicted(real_scene: MakeScene) -> None:
    """S18"""
    s = real_scene(readiness="probe")
    began, answers = asyncio.Event(), asyncio.Event()

    async def answers_late(_: Any) -> LastLook:
        began.set()
        await answers.wait()
        return LastLook(ready=True)

    s.world.hooks["probe_workspace"] = answers_late
    async with s.worker(max_cached_workflows=0):
        handle = await s.start()
        async with asyncio.timeout(30):
            await began.wait()
            answers.set()
            await handle.signal(names.SESSION_FINISHED, finished(s.task))
            await handle.result()
    assert s.world.calls.count("probe_workspace") == 1
