"""A host without a worker: what is to be done there is offered for 15 minutes, then the task fails and says so."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from messages import names
from messages.activities import FinishRequest
from messages.errors import ErrorType
from messages.statuses import FailureSource, TaskStatus
from messages.tasks import Repository
from tests.support.api import eventually
from tests.support.time_skipping import time_skipping_environment
from tests.workflows.conftest import Scene, ScriptedActivities, finished, ready
from workers.worker import all_of

MakeScene = Callable[..., Scene]
PATIENCE = timedelta(minutes=15)
A_MOMENT = timedelta(milliseconds=500)


@pytest.fixture(scope="module")
async def skipping(anyio_backend: str) -> AsyncIterator[WorkflowEnvironment]:
    """A server of these tests' own: one on which something stays on offer skips no time any more."""
    async with time_skipping_environment() as environment:
        yield environment


async def _only_there(request: Any) -> Any:
    info = activity.info()
    if info.is_local:
        raise ApplicationError("this is another host", type=ErrorType.HOST_AWAY)
    return await getattr(ScriptedActivities(info.task_queue), info.activity_type)(request)


def on_another_host(make: MakeScene, **template: Any) -> Scene:
    """Make the scene of a task whose workspace is on host ``h``, which is not that of its workflow's worker."""
    s = make(**template)
    s.world.queue = f"{s.queue}-host"
    s.world.hooks["create_session"] = _only_there
    return s


@asynccontextmanager
async def host(s: Scene) -> AsyncIterator[None]:
    """Work on the workspace's host for as long as the context lasts."""
    async with Worker(s.client, task_queue=s.world.queue, activities=all_of(s.world)):
        yield


async def offers(s: Scene) -> dict[str, timedelta | None]:
    """Return what the server was asked to have done, and how long nobody took it, None where it was not given up."""
    events = (await s.handles[0].fetch_history()).events
    given_up = {event.activity_task_timed_out_event_attributes.scheduled_event_id: event.event_time for event in events}
    return {
        event.activity_task_scheduled_event_attributes.activity_type.name: (
            given_up[event.event_id].ToDatetime() - event.event_time.ToDatetime()
            if event.event_id in given_up
            else None
        )
        for event in events
        if event.HasField("activity_task_scheduled_event_attributes")
    }


async def wait_in_vain(s: Scene, step: str) -> None:
    """See ``step`` offered to the host for 15 minutes, no less and no more."""

    async def is_offered() -> bool:
        return step in await offers(s)

    async def is_given_up() -> bool:
        return (await offers(s))[step] is not None

    await eventually(is_offered)
    await s.pass_time(PATIENCE - A_MOMENT)
    await eventually(is_given_up)
    waited = (await offers(s))[step]
    assert waited is not None
    assert PATIENCE <= waited < PATIENCE + timedelta(seconds=5)


async def end(s: Scene) -> FinishRequest:
    """Return the final record of a task that failed because its host is away."""
    with pytest.raises(WorkflowFailureError) as failure:
        await s.handles[0].result()
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.FAILED
    assert s.world.final.outcome.error_type is ErrorType.HOST_AWAY
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == ErrorType.HOST_AWAY
    assert failure.value.cause.message == s.world.final.outcome.error
    return s.world.final


def nobody_took(step: str) -> str:
    return f"no worker on host h took {step} in time"


async def test_a_task_for_a_host_that_is_away_fails_before_it_has_a_workspace(scene: MakeScene) -> None:
    s = on_another_host(scene)
    s.task = s.task.model_copy(update={"repository": Repository(path="/repository", host="h")})
    s.world.hooks["preflight_task"] = _only_there
    async with s.worker():
        await s.start()
        await wait_in_vain(s, "preflight_task")
        record = await end(s)
    assert record.outcome.error == nobody_took("preflight_task")
    assert record.outcome.failure is not None
    assert record.outcome.failure.source is FailureSource.PREFLIGHT
    assert record.leak_suspected == ""


async def test_a_host_that_goes_away_before_it_provisions_may_have_a_workspace(scene: MakeScene) -> None:
    s = on_another_host(scene)
    async with s.worker():
        await s.start()
        await wait_in_vain(s, "provision_workspace")
        await wait_in_vain(s, "release_workspace")
        record = await end(s)
    assert record.outcome.error == f"{nobody_took('provision_workspace')}; then {nobody_took('release_workspace')}"
    assert record.leak_suspected == nobody_took("release_workspace")


async def test_a_host_that_goes_away_before_the_session_leaves_a_suspected_leak(scene: MakeScene) -> None:
    s = on_another_host(scene)
    async with s.worker():
        async with host(s):
            handle = await s.start()
            await s.event("timer_started")
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await wait_in_vain(s, "create_session")
        await wait_in_vain(s, "release_workspace")
        record = await end(s)
    assert record.outcome.error == f"{nobody_took('create_session')}; then {nobody_took('release_workspace')}"
    assert record.leak_suspected == nobody_took("release_workspace")


async def test_a_host_that_is_back_for_the_release_leaves_no_suspected_leak(scene: MakeScene) -> None:
    s = on_another_host(scene)
    async with s.worker():
        await s.start()
        await wait_in_vain(s, "provision_workspace")
        async with host(s):
            record = await end(s)
    assert s.world.calls.count("release_workspace") == 1
    assert record.outcome.error == nobody_took("provision_workspace")
    assert record.leak_suspected == ""


async def test_a_host_that_goes_away_before_the_release_fails_a_task_that_had_done_its_work(scene: MakeScene) -> None:
    s = on_another_host(scene, readiness="immediate")
    async with s.worker():
        async with host(s):
            handle = await s.start()
            await s.event("timer_started")
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await wait_in_vain(s, "release_workspace")
        record = await end(s)
    assert record.outcome.error == nobody_took("release_workspace")
    assert record.leak_suspected == nobody_took("release_workspace")
