"""A time-skipping server, and workers for the real workflow with scripted activities."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.heartbeat import HeartbeatInterceptor
from messages import names
from messages.activities import (
    AttemptRequest,
    FinishRequest,
    LastLook,
    Preflight,
    PreflightRequest,
    Release,
    ReleaseRequest,
    SessionCreated,
    SessionRequest,
    TaskActivities,
    WorkspaceHandle,
)
from messages.errors import ErrorType
from messages.signals import ProvisioningFailed, SessionFinished, WorkspaceLost, WorkspaceReady
from messages.statuses import BackendKind, Readiness, SessionStatus
from messages.tasks import WORKFLOW_REVISION, TaskInput, TaskResult
from messages.templates import Template
from tests.support.api import eventually
from tests.support.time_skipping import time_skipping_environment
from workers.worker import all_of
from workflows.task_runner import TaskRunner

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def skipping(anyio_backend: str) -> AsyncIterator[WorkflowEnvironment]:
    async with time_skipping_environment() as environment:
        yield environment


class ScriptedActivities(TaskActivities):
    """The world as a test wants it: every call is recorded, and a hook named after an activity replaces its answer."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.calls: list[str] = []
        self.released: ReleaseRequest | None = None
        self.final: FinishRequest | None = None
        self.hooks: dict[str, Callable[[Any], Awaitable[Any]]] = {}

    async def _run(self, name: str, request: Any, answer: Any) -> Any:
        self.calls.append(name)
        return await self.hooks[name](request) if name in self.hooks else answer

    @activity.defn
    async def preflight_task(self, request: PreflightRequest) -> Preflight:
        answer = Preflight(
            host_id="h",
            task_queue=self.queue,
            provision_timeout_seconds=request.task.template.runtime_config.provision_timeout_seconds or 600,
            provision_timeout_rule="default",
        )
        return await self._run("preflight_task", request, answer)

    @activity.defn
    async def provision_workspace(self, request: AttemptRequest) -> WorkspaceHandle:
        return await self._run("provision_workspace", request, self.handle(request.task))

    def handle(self, task: TaskInput) -> WorkspaceHandle:
        return WorkspaceHandle(
            workspace_id=task.workspace_id,
            attempt=1,
            backend=task.template.backend,
            name=names.compute_name(task.workspace_id, 1),
            task_queue=self.queue,
            harness_url="http://127.0.0.1:1",
            readiness=task.template.effective_readiness,
        )

    @activity.defn
    async def probe_workspace(self, handle: WorkspaceHandle) -> LastLook:
        return await self._run("probe_workspace", handle, LastLook(ready=True))

    @activity.defn
    async def look_once_more(self, handle: WorkspaceHandle) -> LastLook:
        return await self._run("look_once_more", handle, LastLook(error="connection refused"))

    @activity.defn
    async def create_session(self, request: SessionRequest) -> SessionCreated | None:
        return await self._run("create_session", request, None)

    @activity.defn
    async def follow_session(self, request: SessionRequest) -> SessionFinished:
        return await self._run("follow_session", request, finished(request.task))

    @activity.defn
    async def stop_session(self, request: SessionRequest) -> SessionFinished:
        end = finished(request.task, status=SessionStatus.CANCELLED, error=request.reason)
        return await self._run("stop_session", request, end)

    @activity.defn
    async def release_workspace(self, request: ReleaseRequest) -> Release:
        self.released = request
        return await self._run("release_workspace", request, Release())

    @activity.defn
    async def finish_task(self, request: FinishRequest) -> None:
        self.final = request
        await self._run("finish_task", request, None)


@dataclass
class Scene:
    """One task on the skipping server: its world, and how to start and watch it."""

    environment: WorkflowEnvironment
    task: TaskInput
    queue: str
    world: ScriptedActivities
    handles: list[WorkflowHandle[TaskRunner, TaskResult]] = field(default_factory=list)

    @property
    def client(self) -> Client:
        return self.environment.client

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[None]:
        async with Worker(
            self.client, task_queue=self.queue, workflows=[TaskRunner], activities=all_of(self.world), **options
        ):
            yield

    async def start(self, **options: Any) -> WorkflowHandle[TaskRunner, TaskResult]:
        handle = await self.client.start_workflow(
            TaskRunner.run,
            self.task,
            id=names.task_workflow_id(self.task.task_id),
            task_queue=self.queue,
            **options,
        )
        self.handles.append(handle)
        return handle

    async def event(self, kind: str) -> None:
        """Return when the history has an event of that kind: asked for again and again, as not every server tells."""

        async def is_there() -> bool:
            return kind in await self.event_types()

        await eventually(is_there)

    async def pass_time(self, time: timedelta) -> None:
        """Skip ``time`` although a worker is asked for something, for which the server holds its clock.

        For just one thing, which must neither end nor be given up meanwhile: the server takes that for an error.
        """
        async with self.environment.time_skipping_unlocked():  # type: ignore[attr-defined]
            await self.environment.sleep(time)

    async def event_types(self) -> list[str]:
        history = await self.handles[0].fetch_history()
        return [event.WhichOneof("attributes").removesuffix("_event_attributes") for event in history.events]


def task_input(**template: Any) -> TaskInput:
    number = next(_numbers)
    fields: dict[str, Any] = {"name": "test", "backend": BackendKind.LOCAL, "readiness": Readiness.CALLBACK}
    return TaskInput(
        task_id=f"t{number}",
        workspace_id=f"w{number}",
        prompt="true",
        template=Template(**(fields | template)),
        revision=WORKFLOW_REVISION,
    )


def ready(task: TaskInput, **changes: Any) -> WorkspaceReady:
    return WorkspaceReady(**({"workspace_id": task.workspace_id, "attempt": 1} | changes))


def provisioning_failed(task: TaskInput, error: str = "no key", log_tail: str = "") -> ProvisioningFailed:
    return ProvisioningFailed(workspace_id=task.workspace_id, attempt=1, error=error, log_tail=log_tail)


def lost(task: TaskInput, reason: str = "the agent exited with 1") -> WorkspaceLost:
    return WorkspaceLost(workspace_id=task.workspace_id, attempt=1, reason=reason, log_tail="last words")


def finished(task: TaskInput, **changes: Any) -> SessionFinished:
    session = names.session_id(task.workspace_id, 1, 1)
    fields = {
        "workspace_id": task.workspace_id,
        "attempt": 1,
        "session_id": session,
        "status": SessionStatus.COMPLETED,
        "exit_code": 0,
    }
    return SessionFinished(**(fields | changes))


def refused(kind: ErrorType, text: str = "no") -> Callable[[Any], Awaitable[Any]]:
    async def hook(_: Any) -> Any:
        raise ApplicationError(text, type=kind, non_retryable=True)

    return hook


class Hanging:
    """A hook that never answers; it notes what was asked, when it began, and when it was cancelled."""

    def __init__(self) -> None:
        self.request: Any = None
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request: Any) -> Any:
        self.request = request
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def beating() -> dict[str, Any]:
    """Return what a worker needs for its activities to hear of a cancellation, and soon."""
    return {
        "interceptors": [HeartbeatInterceptor()],
        "max_heartbeat_throttle_interval": timedelta(milliseconds=100),
        "default_heartbeat_throttle_interval": timedelta(milliseconds=100),
    }


def _maker(environment: WorkflowEnvironment) -> Callable[..., Scene]:
    def make(**template: Any) -> Scene:
        task = task_input(**template)
        queue = f"q-{task.task_id}"
        return Scene(environment, task, queue, ScriptedActivities(queue))

    return make


@pytest.fixture
def scene(skipping: WorkflowEnvironment) -> Callable[..., Scene]:
    """Make the scene of one task under skipped time; keyword arguments are template fields."""
    return _maker(skipping)


@pytest.fixture
def real_scene(temporal_env: WorkflowEnvironment) -> Callable[..., Scene]:
    """Make the scene of one task on a development server, in real time."""
    return _maker(temporal_env)
