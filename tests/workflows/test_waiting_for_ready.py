"""How a task waits: on a signal or a durable timer, with nothing between."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError

from messages import names
from messages.activities import LastLook, Preflight
from messages.errors import ErrorType
from messages.statuses import BackendKind, FailureSource, TaskStatus, TaskStep, Verdict
from messages.tasks import ProvisionFailure, TaskProgress
from tests.workflows.conftest import Scene, finished, lost, provisioning_failed, ready

MakeScene = Callable[..., Scene]


async def test_ready_starts_exactly_one_session_and_nothing_happens_between(scene: MakeScene) -> None:
    """S01"""
    s = scene()
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=300))
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    types = await s.event_types()
    armed = types.index("timer_started")
    first_signal = types.index("workflow_execution_signaled")
    assert first_signal == armed + 1
    assert s.world.calls.count("create_session") == 1
    assert "look_once_more" not in s.world.calls


async def test_a_callback_before_the_wait_is_consumed_without_a_timer(scene: MakeScene) -> None:
    """S02"""
    s = scene()
    # The signals are there before the workflow's first task.
    handle = await s.start(start_signal=names.WORKSPACE_READY, start_signal_args=[ready(s.task)])
    await handle.signal(names.SESSION_FINISHED, finished(s.task))
    async with s.worker():
        await handle.result()
    assert "timer_started" not in await s.event_types()
    assert s.world.calls.count("create_session") == 1


async def test_repeated_callbacks_have_the_effect_of_one(scene: MakeScene) -> None:
    """S03: this server drops no repeat by its request id, so the workflow's own layer is what holds here."""
    s = scene()
    async with s.worker():
        handle = await s.start()
        for _ in range(50):
            await handle.signal(names.WORKSPACE_READY, ready(s.task))
        for _ in range(50):
            await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    for once in ("preflight_task", "provision_workspace", "create_session", "release_workspace"):
        assert s.world.calls.count(once) == 1


async def test_no_callback_fails_at_the_deadline_and_at_most_five_seconds_later(scene: MakeScene) -> None:
    """S08"""
    s = scene(runtime_config={"provision_timeout_seconds": 1200})
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=1195))
        assert (await handle.describe()).status.name == "RUNNING"  # type: ignore[union-attr]
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    history = await handle.fetch_history()
    times = {e.WhichOneof("attributes"): e.event_time.ToDatetime() for e in history.events}
    started = times["timer_started_event_attributes"]
    closed = times["workflow_execution_failed_event_attributes"]
    assert timedelta(seconds=1200) <= closed - started <= timedelta(seconds=1205)
    assert isinstance(failure.value.cause, ApplicationError)
    assert (
        failure.value.cause.message == f"local workspace {s.task.workspace_id} never became ready: connection refused"
    )
    assert s.world.released is not None
    recorded = s.world.released.outcome
    assert recorded.verdict is Verdict.TIMED_OUT
    assert recorded.failure is not None
    assert recorded.failure.source is FailureSource.PROVISION_TIMEOUT
    assert (recorded.failure.timeout_secs, recorded.failure.attempt) == (1200, 1)
    assert s.world.calls.count("release_workspace") == 1
    assert "create_session" not in s.world.calls


@pytest.mark.parametrize("template_says", [None, 300, 3600])
async def test_the_deadline_is_what_preflight_resolved_whatever_the_template_says(
    scene: MakeScene, template_says: int | None
) -> None:
    """S17"""
    s = scene(runtime_config={"provision_timeout_seconds": template_says})

    async def resolves(_: Any) -> Preflight:
        return Preflight(
            host_id="h", task_queue=s.queue, provision_timeout_seconds=1200, provision_timeout_rule="environment"
        )

    s.world.hooks["preflight_task"] = resolves
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(minutes=13))
        status = await handle.query(names.STATUS_QUERY, result_type=TaskProgress)
        assert status.step is TaskStep.WAITING_FOR_READY
        assert status.until is not None
        assert status.until - status.since == timedelta(minutes=20)
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    history = await handle.fetch_history()
    times = {e.WhichOneof("attributes"): e.event_time.ToDatetime() for e in history.events}
    waited = times["workflow_execution_failed_event_attributes"] - times["timer_started_event_attributes"]
    assert timedelta(minutes=20) <= waited <= timedelta(minutes=20, seconds=5)
    assert s.world.released is not None
    assert s.world.released.outcome.failure is not None
    assert s.world.released.outcome.failure.timeout_secs == 1200


async def test_a_lost_callback_is_made_up_for_by_the_last_look(scene: MakeScene) -> None:
    """S10"""
    s = scene()

    async def healthy(_: Any) -> LastLook:
        return LastLook(ready=True)

    s.world.hooks["look_once_more"] = healthy
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=601))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("look_once_more") == 1
    assert s.world.calls.count("create_session") == 1


async def test_a_signal_during_the_last_look_still_wins(scene: MakeScene) -> None:
    """S06"""
    s = scene()

    async def ready_arrives(_: Any) -> LastLook:
        await s.handles[0].signal(names.WORKSPACE_READY, ready(s.task))
        return LastLook(error="connection refused")

    s.world.hooks["look_once_more"] = ready_arrives
    async with s.worker():
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=601))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("create_session") == 1
    assert s.world.released is not None
    assert s.world.released.outcome.verdict is Verdict.READY
    assert s.world.released.outcome.failure is None


async def test_a_last_look_that_no_worker_takes_does_not_hold_the_verdict_up(scene: MakeScene) -> None:
    """S08"""
    s = scene()

    async def hangs(_: Any) -> LastLook:
        await asyncio.Event().wait()
        raise AssertionError

    s.world.hooks["look_once_more"] = hangs
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.verdict is Verdict.TIMED_OUT
    assert "did not end in time" in s.world.released.outcome.error
    history = await handle.fetch_history()
    times = {e.WhichOneof("attributes"): e.event_time.ToDatetime() for e in history.events}
    looked = times["workflow_execution_failed_event_attributes"] - times["timer_fired_event_attributes"]
    assert timedelta(seconds=5) <= looked < timedelta(seconds=10)


async def test_provisioning_failed_ends_the_wait_at_once_with_its_message_and_log(scene: MakeScene) -> None:
    """S04"""
    s = scene()
    async with s.worker():
        handle = await s.start()
        for _ in range(5):
            await handle.signal(names.PROVISIONING_FAILED, provisioning_failed(s.task, "apt failed", "E: no space"))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.failure is not None
    assert s.world.released.outcome.failure.error == "apt failed"
    assert s.world.released.outcome.failure.detail == "E: no space"
    assert s.world.calls.count("release_workspace") == 1


@pytest.mark.parametrize("is_old", [False, True], ids=["now", "by an older worker"])
async def test_what_an_activity_attaches_becomes_the_attempts_failure(scene: MakeScene, is_old: bool) -> None:
    """S40, S42"""
    s = scene(runtime_config={"provision_timeout_seconds": 77})
    attached: dict[str, Any] = {"source": "provider", "detail": "E: no space"}
    if is_old:
        attached |= {"backend": "local", "workspace_id": "w", "attempt": 1, "timeout_secs": None, "error": "no disk"}

    async def fails(_: Any) -> Any:
        raise ApplicationError("no disk", attached, type=ErrorType.PROVISION_FAILED, non_retryable=True)

    s.world.hooks["provision_workspace"] = fails
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.failure == ProvisionFailure(
        source=FailureSource.PROVIDER,
        backend=BackendKind.LOCAL,
        workspace_id=s.task.workspace_id,
        attempt=1,
        timeout_secs=77,
        error="no disk",
        detail="E: no space",
    )


async def test_an_exit_before_ready_fails_at_once_with_the_log(scene: MakeScene) -> None:
    """S14"""
    s = scene()
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_LOST, lost(s.task))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.failure is not None
    assert s.world.released.outcome.failure.source is FailureSource.EXIT
    assert s.world.released.outcome.failure.detail == "last words"


async def test_failed_after_ready_touches_nothing(scene: MakeScene) -> None:
    """S05"""
    s = scene()
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.PROVISIONING_FAILED, provisioning_failed(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.COMPLETED


async def test_the_deadline_holds_while_the_worker_is_off_and_signals_wait_for_it(scene: MakeScene) -> None:
    """S18"""
    s = scene()
    async with s.worker(max_cached_workflows=0):
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=10))
    await handle.signal(names.WORKSPACE_READY, ready(s.task))
    await handle.signal(names.SESSION_FINISHED, finished(s.task))
    async with s.worker():
        await handle.result()
    assert s.world.calls.count("create_session") == 1


async def test_the_original_deadline_holds_after_the_worker_was_off(scene: MakeScene) -> None:
    """S18"""
    s = scene()
    async with s.worker(max_cached_workflows=0):
        handle = await s.start()
        await s.environment.sleep(timedelta(seconds=200))
    await s.environment.sleep(timedelta(seconds=300))
    async with s.worker():
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    history = await handle.fetch_history()
    times = {e.WhichOneof("attributes"): e.event_time.ToDatetime() for e in history.events}
    waited = times["workflow_execution_failed_event_attributes"] - times["timer_started_event_attributes"]
    assert timedelta(seconds=600) <= waited <= timedelta(seconds=605)
    assert (await s.event_types()).count("timer_started") == 1


@pytest.mark.parametrize("takes", [6, 25])
async def test_a_deadline_that_is_seen_late_leaves_the_look_time_to_find_a_stored_callback(
    scene: MakeScene, takes: int
) -> None:
    """S48: what it looks into is only coming back too."""
    s = scene()

    async def finds_it_at_last(_: Any) -> LastLook:
        await s.environment.sleep(timedelta(seconds=takes))
        return LastLook(ready=True)

    s.world.hooks["look_once_more"] = finds_it_at_last
    async with s.worker(max_cached_workflows=0):
        handle = await s.start()
        await s.event("timer_started")
    await s.environment.sleep(timedelta(minutes=10))
    await s.event("timer_fired")
    await s.pass_time(timedelta(minutes=1))
    async with s.worker():
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("look_once_more") == 1
    assert s.world.released is not None
    assert s.world.released.outcome.verdict is Verdict.READY


async def test_an_immediate_workspace_waits_for_nothing(scene: MakeScene) -> None:
    """S13"""
    s = scene(readiness="immediate")
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert "look_once_more" not in s.world.calls


async def test_starting_a_task_twice_runs_it_once(scene: MakeScene) -> None:
    """S20"""
    s = scene()
    async with s.worker():
        first = await s.start()
        second = await s.start(id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING)
        assert first.result_run_id == second.result_run_id
        await first.signal(names.WORKSPACE_READY, ready(s.task))
        await first.signal(names.SESSION_FINISHED, finished(s.task))
        await first.result()
    assert s.world.calls.count("provision_workspace") == 1


async def test_a_workspace_that_cannot_be_reached_is_not_ready(scene: MakeScene) -> None:
    """S15"""
    s = scene()

    async def refuses(_: Any) -> None:
        raise ApplicationError("no answer from http://127.0.0.1:1/healthz", type=ErrorType.WORKSPACE_UNREACHABLE)

    s.world.hooks["create_session"] = refuses
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert s.world.released is not None
    assert s.world.released.outcome.failure is not None
    assert s.world.released.outcome.failure.source is FailureSource.PROBE
    assert "no answer" in s.world.released.outcome.error


async def test_a_signal_that_cannot_be_decoded_is_logged_and_changes_nothing(
    scene: MakeScene, caplog: pytest.LogCaptureFixture
) -> None:
    """S36: the API sends none; from elsewhere it must not harm the task."""
    s = scene()
    async with s.worker():
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, {"attempt": "garbage"})
        await s.environment.sleep(timedelta(seconds=5))
        assert "create_session" not in s.world.calls
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert any("deserializ" in record.getMessage().lower() for record in caplog.records)
