"""The worker: workflows, and the activities of one host, with everything that they need."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.agent_client import AgentClient
from activities.backends.container import ContainerBackend
from activities.backends.contract import Backend, Compute
from activities.backends.local import LocalBackend
from activities.backends.worktree import WorktreeBackend
from activities.container_watcher import ContainerWatcher
from activities.errors import ActivityFailure, WorkspaceUnreachable
from activities.heartbeat import HeartbeatInterceptor
from activities.silence import SilenceWatcher, Surroundings
from activities.task_activities import ActivitySettings, TaskActivitiesImpl
from activities.watcher import ProcessWatcher, signal_owner
from messages.activities import TaskActivities
from messages.keys import Keyring
from messages.names import TASK_QUEUE, host_task_queue
from messages.statuses import BackendKind
from store.registry import Registry
from workers.errors import StackError
from workflows.task_runner import TaskRunner

ACTIVITIES_AT_ONCE = 500
"""How many activities of a queue one worker carries out at once. The SDK's 100 would be used up by that many sessions
of harnesses, which are followed for as long as they run, and nothing else on that host would begin any more."""

_CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each session that is followed holds one; httpx's own limit of 100 would keep all others waiting."""

GRACEFUL_SHUTDOWN = timedelta(seconds=10)
"""What activities get to finish in; they run again elsewhere, or here at the next start, if it is not enough."""

_HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""How rarely heartbeats are sent; a cancellation is heard of with the next one."""


@dataclass(frozen=True)
class HostSettings:
    """This host, the folder that its workspaces are in, and how they reach the API.

    ``public_url``: how other machines and containers do, None where nobody said. ``open_door``: makes the API's
    callback routes listen on an address of this host too and returns the port, where API and worker are one program.
    ``environ``: what ``required_env``, the provision timeout and the workspaces' environment are taken from.
    """

    host_id: str
    home: Path
    api_url: str
    public_url: str | None = None
    open_door: Callable[[str], Awaitable[int]] | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


@asynccontextmanager
async def running_worker(
    client: Client, registry: Registry, keys: Keyring, host: HostSettings
) -> AsyncGenerator["asyncio.Task[None]"]:
    """Work for as long as the context lasts; then finish what is under way, within :data:`GRACEFUL_SHUTDOWN`.

    Yields a task that ends, with its error, only where the worker cannot go on.
    """
    local = LocalBackend(host.home, environ=host.environ, host_id=host.host_id)
    worktree = WorktreeBackend(host.home, environ=host.environ, host_id=host.host_id)
    container = ContainerBackend(
        host.home,
        environ=host.environ,
        installation_id=keys.installation_id,
        host_id=host.host_id,
        public_url=host.public_url,
        open_door=host.open_door,
    )
    backends: dict[BackendKind, Backend] = {
        BackendKind.LOCAL: local,
        BackendKind.WORKTREE: worktree,
        BackendKind.CONTAINER: container,
    }
    announce = signal_owner(client, registry)
    watched = {BackendKind.LOCAL: local, BackendKind.WORKTREE: worktree}
    async with (
        # Workspaces are reached directly, whatever proxy the environment names for the rest of the world.
        httpx.AsyncClient(trust_env=False, limits=_CONNECTIONS) as http,
        ProcessWatcher(watched, announce) as processes,
        ContainerWatcher(container, announce) as containers,
        SilenceWatcher(
            Surroundings(client=client, registry=registry, keys=keys, http=http, api_url=host.api_url),
            host.host_id,
            backends,
            announce,
        ) as silence,
    ):

        async def watch(kind: BackendKind, compute: Compute) -> None:
            silence.look_soon()
            if kind is BackendKind.CONTAINER:
                await containers.watch(compute)
            else:
                await processes.watch(kind, compute)

        impl = TaskActivitiesImpl(
            registry=registry,
            backends=backends,
            keys=keys,
            client=http,
            settings=ActivitySettings(host_id=host.host_id, api_url=host.api_url),
            environ=host.environ,
            on_provisioned=watch,
        )
        workers = [
            new_worker(client, host.host_id, TASK_QUEUE, all_of(impl), [TaskRunner]),
            new_worker(client, host.host_id, host_task_queue(host.host_id), all_of(impl)),
        ]
        runs = [asyncio.create_task(worker.run(), name="worker") for worker in workers]
        greeting = asyncio.create_task(
            greet_workspaces(http, keys, (local, worktree, container)), name="greet workspaces"
        )
        first_end = asyncio.create_task(_first_end(runs, client.namespace), name="end of a worker")
        try:
            yield first_end
        finally:
            first_end.cancel()
            greeting.cancel()
            await asyncio.gather(*(worker.shutdown() for worker in workers), return_exceptions=True)
            await asyncio.gather(*runs, first_end, greeting, return_exceptions=True)


class BackendWithAgents(Protocol):
    """What a backend offers whose workspaces have agents that this host can speak to."""

    async def agents(self) -> list[tuple[Compute, str]]:
        """Return every workspace of this host and where its agent listens."""
        ...


async def greet_workspaces(http: httpx.AsyncClient, keys: Keyring, backends: Iterable[BackendWithAgents]) -> None:
    """Ask every agent of this host how it is: one that waits to report (nobody was there) then tries it at once."""

    async def greet(compute: Compute, url: str) -> None:
        token = keys.agent_token(compute.workspace_id, compute.attempt)
        with contextlib.suppress(WorkspaceUnreachable):  # its end is the watcher's business
            await AgentClient(http, url, token).health()

    for backend in backends:
        with contextlib.suppress(ActivityFailure):  # Docker is not there: nor is anybody to greet
            await asyncio.gather(*(greet(compute, url) for compute, url in await backend.agents()))


_STICKY_SECONDS = timedelta(seconds=2)
"""How long the server waits for the worker that has a workflow in its cache: the longest that the sudden death of a
worker can hold up a deadline or a signal."""


def all_of(impl: TaskActivities) -> list[Callable[..., Any]]:
    """Return what a worker registers of a task's activities: every one that the contract names."""
    return [getattr(impl, name) for name in sorted(TaskActivities.__abstractmethods__)]


def new_worker(
    client: Client,
    host_id: str,
    queue: str,
    activities: Sequence[Callable[..., Any]],
    workflows: Sequence[type] = (),
) -> Worker:
    """Return a worker with the options that all of ours have; it does nothing until it is run."""
    return Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=activities,
        # Tests run the same workflows in the sandbox, which finds what is not deterministic; here it would only load
        # their modules anew for every task, and double what the workflow costs (ADR 0010).
        workflow_runner=UnsandboxedWorkflowRunner(),
        interceptors=[HeartbeatInterceptor()],
        identity=f"{os.getpid()}@{host_id}",
        sticky_queue_schedule_to_start_timeout=_STICKY_SECONDS,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        max_concurrent_activities=ACTIVITIES_AT_ONCE,
        max_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
    )


async def _first_end(runs: list["asyncio.Task[None]"], namespace: str) -> None:
    done, _ = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
    for run in done:
        try:
            run.result()
        except RuntimeError as e:  # the SDK looks for its namespace first, and has no error of its own for that
            if "Namespace" not in str(e) or "not found" not in str(e):
                raise
            raise StackError(
                f"Temporal has no namespace {namespace!r}; make it: temporal operator namespace create --namespace"
                f" {namespace}, or correct TEMPORAL_NAMESPACE"
            ) from e
