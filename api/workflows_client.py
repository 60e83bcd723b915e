"""The client side of Temporal: starting and cancelling tasks, and asking which hosts have a worker."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api.problems import Problem, not_set_up, unavailable
from api.temporal_setup import namespace_is_missing, setup_problem
from messages.names import (
    STATUS_QUERY,
    TASK_QUEUE,
    TASK_RUNNER,
    host_task_queue,
    task_workflow_id,
)
from messages.search_attributes import TASK_STATUS, TASK_STEP, WORKSPACE_BACKEND, WORKSPACE_ID
from messages.statuses import TaskStatus
from messages.tasks import TaskInput, TaskProgress

RPC_SECONDS = 5.0
WORKFLOW_TASK_TIMEOUT = timedelta(seconds=4)
"""What the death of a worker in the middle of a workflow task costs at most; the default of 10 s would be too late for
a deadline that holds to 5 s."""
_SUMMARY_BYTES = 200
_LOOKS_FOR_A_WORKER = (0.0, 0.25, 0.5, 1.0)
"""Pauses before each look for a host's worker (seconds)."""

_log = logging.getLogger(__name__)


async def start_task(client: Client, task: TaskInput, *, queue: str = TASK_QUEUE) -> None:
    """Start the task's workflow unless it runs or has run; raise a 503 problem while Temporal is away."""
    workflow_id = task_workflow_id(task.task_id)
    again = f"submit it again with its id to start it: --id {task.task_id}"
    async with _answering(client, f"task {task.task_id!r} is recorded, but not started", again):
        try:
            await client.start_workflow(
                TASK_RUNNER,
                task,
                id=workflow_id,
                task_queue=queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=WORKFLOW_TASK_TIMEOUT,
                # Where the worker is in this process, as in the embedded stack, its first work comes with the answer.
                request_eager_start=True,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(TASK_STATUS, TaskStatus.RUNNING.value),
                        SearchAttributePair(TASK_STEP, task.first_step_to_be_stuck_in.value),
                        SearchAttributePair(WORKSPACE_BACKEND, task.template.backend.value),
                        SearchAttributePair(WORKSPACE_ID, task.workspace_id),
                    ]
                ),
                static_summary=_summary(task.prompt),
                static_details=_details(task),
                rpc_timeout=timedelta(seconds=RPC_SECONDS),
            )
        except WorkflowAlreadyStartedError:
            _log.warning("%s has run before and is not started again", workflow_id)


async def cancel_task(client: Client, task_id: str) -> bool:
    """Ask the task's workflow to cancel; False where no such workflow runs. Raises a 503 problem."""
    async with _answering(client, f"task {task_id!r} was not cancelled"):
        try:
            handle = client.get_workflow_handle(task_workflow_id(task_id))
            # Temporal answers a request to cancel a closed workflow as if it had been of use.
            description = await handle.describe(rpc_timeout=timedelta(seconds=RPC_SECONDS))
            if description.status is not WorkflowExecutionStatus.RUNNING:
                return False
            await handle.cancel(rpc_timeout=timedelta(seconds=RPC_SECONDS))
        except RPCError as e:
            if e.status is RPCStatusCode.NOT_FOUND and not namespace_is_missing(e):
                return False
            raise
    return True


async def task_progress(client: Client, task_id: str) -> TaskProgress | None:
    """Ask the task's workflow what it waits for; None where there is no such workflow. Raises a 503 problem."""
    async with _answering(client, f"what task {task_id!r} waits for is not known"):
        try:
            return await client.get_workflow_handle(task_workflow_id(task_id)).query(
                STATUS_QUERY, result_type=TaskProgress, rpc_timeout=timedelta(seconds=RPC_SECONDS)
            )
        except RPCError as e:
            if e.status is RPCStatusCode.NOT_FOUND and not namespace_is_missing(e):
                return None
            raise


async def require_worker(client: Client, host_id: str) -> None:
    """Raise a 422 problem where no worker serves ``host_id``. While Temporal is away nothing is known, or raised."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=host_task_queue(host_id)),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    for pause in _LOOKS_FOR_A_WORKER:
        # A worker that has just started is known from its first poll on, and nothing announces that.
        await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(RPC_SECONDS):
                answer = await client.workflow_service.describe_task_queue(
                    request, timeout=timedelta(seconds=RPC_SECONDS)
                )
        except (RPCError, TimeoutError, RuntimeError) as e:
            _log.warning("whether host %s has a worker is not known: %s", host_id, e or "no answer")
            return
        if answer.pollers:
            return
    raise Problem(
        422,
        "no-worker-on-host",
        f"no worker runs on host {host_id!r}, where the repository is said to be; start one there with"
        " 'taskrunner worker', or name the host that has the repository",
    )


@asynccontextmanager
async def _answering(client: Client, what: str, hint: str = "try again") -> AsyncGenerator[None]:
    """Turn every way in which Temporal can fail to answer into a 503 problem, which says ``what`` came of it."""
    try:
        # The outer limit also covers connecting, which a lazy client does within its first call.
        async with asyncio.timeout(RPC_SECONDS + 0.5):
            yield
    except RPCError as e:
        _log.warning("%s: Temporal answered %s: %s", what, e.status.name, e.message)
        if wrong := setup_problem(e, client.namespace):
            raise not_set_up(what, str(wrong), f"then {hint}") from e
        raise unavailable(f"{what}: Temporal answered {e.status.name}: {e.message[:300]}", hint) from e
    except (TimeoutError, RuntimeError) as e:
        _log.warning("%s: Temporal is away: %s", what, e or "no answer")
        raise unavailable(f"{what}: Temporal is away", hint) from e


def _summary(prompt: str) -> str:
    """Return the prompt's first line, short enough for Temporal's UI (at most 200 bytes)."""
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "")
    return line.encode()[:_SUMMARY_BYTES].decode("utf-8", "ignore")


def _details(task: TaskInput) -> str:
    lines = [
        f"- task `{task.task_id}`, workspace `{task.workspace_id}`",
        f"- template `{task.template.name}`, backend `{task.template.backend.value}`",
    ]
    if task.repository is not None:
        where = f"`{task.repository.path}` on host `{task.repository.host}`" if task.repository.path else "a URL"
        lines.append(f"- repository {where}, ref `{task.ref or 'HEAD'}`")
    return "\n".join(lines)
