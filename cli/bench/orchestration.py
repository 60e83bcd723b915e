"""What the orchestration costs, against the minimal workflow on the same server: latency, throughput, history."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from api.workflows_client import start_task
from cli.bench.minimal import CREATE_SESSION, Minimal, MinimalActivities
from cli.bench.no_op import NoOpActivities, finished
from cli.bench.workplace import CALLBACK_TEMPLATE, Stack
from cli.client import ApiClient
from cli.errors import CliError
from messages.activities import SessionRequest
from messages.names import SESSION_FINISHED, host_task_queue, random_id, task_workflow_id
from messages.statuses import BackendKind, SessionStatus
from messages.tasks import WORKFLOW_REVISION, TaskInput, TaskRequest
from messages.templates import Template
from workers.worker import all_of, new_worker
from workflows.task_runner import TaskRunner

AT_ONCE = 40
"""How many workflows a round of ``tasks_per_second`` runs at once."""

POLL_SECONDS = 2.0

_HOST = "bench"
_MINIMAL_QUEUE = "bench-minimal"
_TASK_QUEUE = "bench-tasks"
_SIGNAL_AFTER_SECONDS = 0.25
"""When, after the activity, a signal comes that a workspace would send: then the workflow waits for it, as it would."""

Samples = tuple[list[float], list[float]]
"""Ours, and the floor's, taken in turn."""

_numbers = itertools.count(1)


async def ready_to_session(stack: Stack, n: int) -> Samples:
    """Return the milliseconds from the ready signal to the start of the next activity, by the history's own clock."""
    client = stack.temporal
    ours: list[float] = []
    floor: list[float] = []
    async with (
        ApiClient(stack.service) as api,
        _running(_minimal_worker(client, MinimalActivities())),
    ):
        for number in range(n + 1):
            request = TaskRequest(id=random_id("t"), prompt="true", template=CALLBACK_TEMPLATE)
            task = await api.submit(request)
            handle = client.get_workflow_handle(task.workflow_id)
            await handle.result()
            real = await _signal_to_activity(handle, "create_session")
            minimal = await _start_minimal(client)
            await _until_it_waits(minimal)
            await minimal.signal(Minimal.ready)
            await minimal.result()
            if number > 0:  # the first of each finds nothing loaded
                ours.append(real)
                floor.append(await _signal_to_activity(minimal, CREATE_SESSION))
    return ours, floor


async def polled_2s(stack: Stack, n: int) -> list[float]:
    """Return the milliseconds from the ready signal until a loop that asks every 2 s knows of it."""
    client = stack.temporal
    loop = asyncio.get_running_loop()

    async def one() -> float:
        handle = await _start_minimal(client)
        await _until_it_waits(handle)
        sent = 0.0

        async def send() -> None:
            nonlocal sent
            await asyncio.sleep(random.uniform(0, POLL_SECONDS))  # noqa: S311 (whenever the workspace is ready)
            sent = loop.time()
            await handle.signal(Minimal.ready)

        sending = asyncio.create_task(send())
        while not await handle.query(Minimal.is_ready):  # noqa: ASYNC110 (the very thing that is measured)
            await asyncio.sleep(POLL_SECONDS)
        noticed = loop.time()
        await sending
        await handle.result()
        return (noticed - sent) * 1000

    async with _running(_minimal_worker(client, MinimalActivities())):
        return list(await asyncio.gather(*(one() for _ in range(n))))


async def tasks_per_second(stack: Stack, n: int) -> Samples:
    """Return, for each of ``n`` rounds, how many tasks a second went through with :data:`AT_ONCE` at once.

    Both sides have the same client, the same kind of worker in this process and activities that do nothing. A
    TaskRunner has its activities on its host's queue, and its end is signalled as a workspace would.
    """
    client = stack.temporal
    signals: set[asyncio.Task[None]] = set()

    def later(signal: Callable[[], Awaitable[None]]) -> None:
        async def send() -> None:
            await asyncio.sleep(_SIGNAL_AFTER_SECONDS)
            await signal()

        signals.add(task := asyncio.create_task(send()))
        task.add_done_callback(signals.discard)

    async def provisioned(workflow_id: str) -> None:
        later(lambda: client.get_workflow_handle_for(Minimal.run, workflow_id).signal(Minimal.ready))

    async def session_created(request: SessionRequest) -> None:
        handle = client.get_workflow_handle(task_workflow_id(request.task.task_id))
        end = finished(request, SessionStatus.COMPLETED)
        later(lambda: handle.signal(SESSION_FINISHED, end))

    async def task() -> None:
        number = random_id("t")
        given = TaskInput(
            task_id=number,
            workspace_id=random_id("w"),
            prompt="true",
            template=Template(name="bench", backend=BackendKind.LOCAL),
            revision=WORKFLOW_REVISION,
        )
        await start_task(client, given, queue=_TASK_QUEUE)
        await client.get_workflow_handle(task_workflow_id(number)).result()

    async def minimal() -> None:
        await (await _start_minimal(client)).result()

    host_queue = host_task_queue(_HOST)
    no_op = all_of(NoOpActivities(_HOST, host_queue, session_created))
    ours: list[float] = []
    floor: list[float] = []
    async with AsyncExitStack() as parts:
        for worker in (
            new_worker(client, _HOST, _TASK_QUEUE, no_op, [TaskRunner]),
            new_worker(client, _HOST, host_queue, no_op),
            _minimal_worker(client, MinimalActivities(provisioned)),
        ):
            await parts.enter_async_context(_running(worker))
        await asyncio.gather(task(), minimal())
        for _ in range(n):
            ours.append(await _rate(task))
            floor.append(await _rate(minimal))
        await asyncio.gather(*signals, return_exceptions=True)
    return ours, floor


async def history_events(stack: Stack, workflow_ids: list[str]) -> list[float]:
    """Return how many events the histories of these workflows have."""
    handles = [stack.temporal.get_workflow_handle(found) for found in workflow_ids]
    return [float((await handle.describe()).history_length) for handle in handles]


async def _rate(one: Callable[[], Awaitable[None]]) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return AT_ONCE / (loop.time() - started)


@asynccontextmanager
async def _running(worker: Worker) -> AsyncGenerator[None]:
    async with worker:
        yield


def _minimal_worker(client: Client, activities: MinimalActivities) -> Worker:
    """Return a worker as one would write it by hand: with the SDK's defaults."""
    return Worker(
        client,
        task_queue=_MINIMAL_QUEUE,
        workflows=[Minimal],
        activities=[activities.provision, activities.create_session],
    )


async def _start_minimal(client: Client) -> WorkflowHandle[Minimal, str]:
    name = f"bench-{next(_numbers)}"
    return await client.start_workflow(Minimal.run, name, id=name, task_queue=_MINIMAL_QUEUE)


async def _until_it_waits(handle: WorkflowHandle[Minimal, str]) -> None:
    async for event in handle.fetch_history_events(wait_new_event=True):
        if event.HasField("timer_started_event_attributes"):
            return
    raise CliError(f"workflow {handle.id} ended before it waited")


async def _signal_to_activity(handle: WorkflowHandle[Any, Any], activity: str) -> float:
    """Return the milliseconds from the first signal to the start of the ``activity``."""
    signalled: HistoryEvent | None = None
    scheduled = 0
    async for event in handle.fetch_history_events():
        started: int | None = None
        if event.HasField("workflow_execution_signaled_event_attributes"):
            signalled = signalled or event
        elif event.HasField("activity_task_scheduled_event_attributes"):
            if event.activity_task_scheduled_event_attributes.activity_type.name == activity:
                scheduled = event.event_id
        elif event.HasField("activity_task_started_event_attributes"):
            if event.activity_task_started_event_attributes.scheduled_event_id == scheduled:
                started = event.event_time.ToNanoseconds()
        elif event.HasField("marker_recorded_event_attributes"):
            started = _start_of_local(event, activity)
        if started is not None and signalled is not None:
            return (started - signalled.event_time.ToNanoseconds()) / 1e6
    raise CliError(f"the history of {handle.id} has no {activity} after a signal")


def _start_of_local(event: HistoryEvent, activity: str) -> int | None:
    """Return when (ns) the SDK began the local ``activity``, where the event is what it recorded of that."""
    marker = event.marker_recorded_event_attributes
    if marker.marker_name != "core_local_activity":
        return None
    data: dict[str, Any] = json.loads(marker.details["data"].payloads[0].data)
    if data["activity_type"] != activity:
        return None
    began: dict[str, int] = data["original_schedule_time"]
    return began["seconds"] * 1_000_000_000 + began["nanos"]
