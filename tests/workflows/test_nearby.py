"""Short steps: tried by the worker that has the workflow first, and else an activity on the queue of those who can."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowFailureError
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError

from messages import names
from messages.errors import ErrorType
from messages.search_attributes import TASK_STEP
from messages.statuses import TaskStatus
from messages.tasks import Repository
from messages.templates import HarnessAgent
from tests.workflows.conftest import Scene, ScriptedActivities, finished, ready, refused

MakeScene = Callable[..., Scene]
SHORT_STEPS = ["preflight_task", "create_session"]


async def run_to_its_end(s: Scene, **options: Any) -> None:
    async with s.worker():
        handle = await s.start(**options)
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()


async def scheduled(s: Scene) -> list[str]:
    """Return the ordinary activities of the task's history, in turn."""
    history = await s.handles[0].fetch_history()
    return [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]


async def announced(s: Scene) -> list[str]:
    """Return what the search attribute TaskStep said, in turn."""
    history = await s.handles[0].fetch_history()
    fields = [
        *(
            event.workflow_execution_started_event_attributes.search_attributes.indexed_fields
            for event in history.events
        ),
        *(
            event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            for event in history.events
        ),
    ]
    return [json.loads(found[TASK_STEP.name].data) for found in fields if TASK_STEP.name in found]


def as_the_api_starts(s: Scene) -> dict[str, Any]:
    attributes = [SearchAttributePair(TASK_STEP, s.task.first_step_to_be_stuck_in.value)]
    return {"search_attributes": TypedSearchAttributes(attributes)}


async def test_where_the_workflows_worker_can_do_them_the_server_hears_of_their_results_only(scene: MakeScene) -> None:
    s = scene(readiness="immediate")
    await run_to_its_end(s)
    assert await scheduled(s) == ["provision_workspace", "release_workspace"]
    assert s.world.calls == [
        "preflight_task",
        "provision_workspace",
        "create_session",
        "release_workspace",
        "finish_task",
    ]


async def test_a_step_is_announced_once_a_task_can_be_stuck_in_it(scene: MakeScene) -> None:
    s = scene(readiness="immediate")
    await run_to_its_end(s, **as_the_api_starts(s))
    assert await announced(s) == ["provisioning", "releasing"]


async def test_a_short_preflight_that_takes_long_is_announced(scene: MakeScene) -> None:
    """S41"""
    s = scene(readiness="immediate")

    async def elsewhere(request: Any) -> Any:
        if activity.info().is_local:
            raise ApplicationError("this is another host", type=ErrorType.HOST_AWAY)
        return await ScriptedActivities(s.queue).preflight_task(request)

    s.world.hooks["preflight_task"] = elsewhere
    await run_to_its_end(s, **as_the_api_starts(s))
    assert await announced(s) == ["provisioning", "preflight", "provisioning", "releasing"]


async def test_a_task_that_its_short_preflight_refused_says_so(scene: MakeScene) -> None:
    """S41"""
    s = scene(readiness="immediate")
    s.world.hooks["preflight_task"] = refused(ErrorType.INVALID_TASK, "API_KEY is not set")
    async with s.worker():
        handle = await s.start(**as_the_api_starts(s))
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert await announced(s) == ["provisioning", "preflight"]


async def test_the_preflight_of_a_url_is_announced_from_the_start(scene: MakeScene) -> None:
    """S41"""
    s = scene(readiness="immediate")
    s.task = s.task.model_copy(update={"repository": Repository(url="https://git.invalid/x.git")})
    await run_to_its_end(s, **as_the_api_starts(s))
    assert await announced(s) == ["preflight", "provisioning", "releasing"]


async def test_a_workflow_that_was_started_without_search_attributes_gets_them(scene: MakeScene) -> None:
    s = scene(readiness="immediate")
    await run_to_its_end(s)
    assert await announced(s) == ["provisioning", "releasing"]


@pytest.mark.parametrize("step", SHORT_STEPS)
async def test_a_step_for_another_host_goes_to_its_queue(scene: MakeScene, step: str) -> None:
    s = scene(readiness="immediate")

    async def elsewhere(request: Any) -> Any:
        if activity.info().is_local:
            raise ApplicationError("this is another host", type=ErrorType.HOST_AWAY)
        del s.world.hooks[step]
        return await getattr(s.world, step)(request)

    s.world.hooks[step] = elsewhere
    await run_to_its_end(s)
    assert step in await scheduled(s)
    assert s.world.final is not None
    assert s.world.final.outcome.status is TaskStatus.COMPLETED


@pytest.mark.parametrize("step", SHORT_STEPS)
async def test_a_step_that_takes_long_becomes_an_activity_that_can_be_seen(scene: MakeScene, step: str) -> None:
    s = scene(readiness="immediate")

    async def hang(request: Any) -> Any:
        if activity.info().is_local:
            await asyncio.Event().wait()
        del s.world.hooks[step]
        return await getattr(s.world, step)(request)

    s.world.hooks[step] = hang
    await run_to_its_end(s)
    assert step in await scheduled(s)


@pytest.mark.parametrize(
    ("step", "kind"), [("preflight_task", ErrorType.INVALID_TASK), ("create_session", ErrorType.SESSION_REFUSED)]
)
async def test_a_final_failure_of_the_first_try_is_the_steps(scene: MakeScene, step: str, kind: ErrorType) -> None:
    s = scene(readiness="immediate")
    s.world.hooks[step] = refused(kind, "it will never do")
    async with s.worker():
        handle = await s.start()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == kind
    assert "it will never do" in failure.value.cause.message
    assert s.world.calls.count(step) == 1
    assert step not in await scheduled(s)


async def test_a_task_from_before_keeps_to_the_order_that_it_began_with(scene: MakeScene) -> None:
    """S42"""
    s = scene(readiness="immediate")
    s.task = s.task.model_copy(update={"revision": 0})
    await run_to_its_end(s)
    assert await scheduled(s) == ["preflight_task", "provision_workspace", "create_session", "release_workspace"]


async def test_what_may_take_long_is_an_activity_at_once(scene: MakeScene) -> None:
    s = scene(agent=HarnessAgent(kind="harnessd", command=("harnessd",), port=8080))
    s.task = s.task.model_copy(update={"repository": Repository(url="https://git.invalid/x.git")})

    async def never_here(request: Any) -> Any:
        assert not activity.info().is_local
        del s.world.hooks[activity.info().activity_type]
        return await getattr(s.world, activity.info().activity_type)(request)

    s.world.hooks.update(dict.fromkeys(SHORT_STEPS, never_here))
    await run_to_its_end(s)
    assert {"preflight_task", "create_session"} <= set(await scheduled(s))


@pytest.mark.parametrize("step", SHORT_STEPS)
async def test_a_worker_that_stops_in_the_first_try_leaves_the_step_to_the_next_one(
    real_scene: MakeScene, step: str
) -> None:
    """S21"""
    s = real_scene(readiness="immediate")
    inside = asyncio.Event()

    async def hold(_: Any) -> Any:
        inside.set()
        await asyncio.Event().wait()

    s.world.hooks[step] = hold
    async with s.worker(graceful_shutdown_timeout=timedelta(0)):
        handle = await s.start(task_timeout=timedelta(seconds=4))
        await inside.wait()
    del s.world.hooks[step]
    async with s.worker():
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert s.world.calls.count("provision_workspace") == 1
