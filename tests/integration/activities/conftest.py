"""The activities of a task on one host, with a real registry, real agents and real repositories."""

import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import processes
from activities.backends.contract import Compute
from activities.backends.host import HostBackend
from activities.task_activities import ActivitySettings, TaskActivitiesImpl
from messages.activities import (
    AttemptRequest,
    Preflight,
    PreflightRequest,
    ReleaseRequest,
    SessionRequest,
    WorkspaceHandle,
)
from messages.errors import ErrorType
from messages.keys import Keyring
from messages.names import session_id
from messages.sealed import seal_env
from messages.signals import SessionFinished
from messages.statuses import (
    BackendKind,
    FailureSource,
    TaskStatus,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure, TaskInput, TaskOutcome
from store.registry import Registry
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import make_repository
from tests.support.hosts import BACKENDS, HOST, make_task

SECRET = "a-secret-that-nobody-may-see"


class World:
    """The activities on one host, run as Temporal would run them."""

    def __init__(
        self, folder: Path, registry: Registry, keys: Keyring, client: httpx.AsyncClient, api_url: str
    ) -> None:
        self.home = folder / "home"
        self.repository = make_repository(folder / "repository")
        self.registry = registry
        self.keys = keys
        self.environ = {**os.environ, "API_KEY": SECRET}
        self.backends: dict[BackendKind, HostBackend] = {
            kind: backend(self.home, environ=self.environ, stop_grace_seconds=5) for kind, backend in BACKENDS.items()
        }
        self.provisioned: list[Compute] = []
        self.activities = TaskActivitiesImpl(
            registry=registry,
            backends=self.backends,
            keys=keys,
            client=client,
            settings=ActivitySettings(host_id=HOST, api_url=api_url),
            environ=self.environ,
            on_provisioned=self._on_provisioned,
        )

    async def _on_provisioned(self, kind: BackendKind, compute: Compute) -> None:
        assert kind in self.backends
        self.provisioned.append(compute)

    async def run(self, method: Any, request: Any, *, is_local: bool = False) -> Any:
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, is_local=is_local)
        return await environment.run(method, request)

    async def fails(
        self, method: Any, request: Any, error_type: ErrorType, *, retryable: bool = False, is_local: bool = False
    ) -> ApplicationError:
        with pytest.raises(ApplicationError) as failed:
            await self.run(method, request, is_local=is_local)
        assert failed.value.type == error_type.value, failed.value
        assert failed.value.non_retryable is not retryable
        assert str(failed.value)
        return failed.value

    async def submit(self, **options: Any) -> TaskInput:
        options.setdefault("repository", self.repository)
        submitted = options.pop("submitted", {})
        task = make_task(options.pop("kind", BackendKind.WORKTREE), **options)
        task = task.model_copy(update={"env_names": tuple(submitted)})
        env = seal_env(self.keys, task.task_id, submitted) if submitted else None
        await self.registry.tasks.create(task, digest="d", idempotency_key=None, env=env)
        return task

    async def preflight(self, task: TaskInput) -> Preflight:
        return await self.run(self.activities.preflight_task, PreflightRequest(task=task))

    async def provision(self, task: TaskInput, attempt: int = 1) -> tuple[AttemptRequest, WorkspaceHandle]:
        request = AttemptRequest(task=task, attempt=attempt, preflight=await self.preflight(task))
        return request, await self.run(self.activities.provision_workspace, request)

    def session(self, task: TaskInput, handle: WorkspaceHandle) -> SessionRequest:
        return SessionRequest(task=task, handle=handle, session_id=session_id(task.workspace_id, handle.attempt, 1))

    def compute(self, task: TaskInput) -> Compute:
        return Compute(workspace_id=task.workspace_id, attempt=1, task_id=task.task_id)

    def folder(self, task: TaskInput) -> Path:
        return self.home / "workspaces" / self.compute(task).name

    async def status(self, task: TaskInput) -> WorkspaceStatus | None:
        view = await self.registry.workspaces.get(task.workspace_id)
        return view.status if view else None

    async def kill_agent(self, task: TaskInput) -> None:
        process = await self.backends[task.template.backend].process_to_watch(self.compute(task))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        assert await processes.wait_for_exit(process, 10)


@pytest.fixture(scope="module")
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
async def world(tmp_path: Path, registry: Registry, keys: Keyring, api: CallbackApi) -> AsyncIterator[World]:
    async with httpx.AsyncClient() as client:
        world = World(tmp_path, registry, keys, client, api.url)
        yield world
        for backend in world.backends.values():
            for compute in await backend.list_owned():
                await backend.destroy(compute)


def release(request: AttemptRequest, outcome: TaskOutcome, session: str | None = None) -> ReleaseRequest:
    return ReleaseRequest(
        task=request.task, attempt=request.attempt, preflight=request.preflight, outcome=outcome, session_id=session
    )


def completed(session: SessionFinished | None = None) -> TaskOutcome:
    return TaskOutcome(status=TaskStatus.COMPLETED, verdict=Verdict.READY, session=session)


def timed_out(task: TaskInput) -> TaskOutcome:
    failure = ProvisionFailure(
        source=FailureSource.PROVISION_TIMEOUT,
        backend=task.template.backend,
        workspace_id=task.workspace_id,
        attempt=1,
        timeout_secs=600,
        error="never became ready",
    )
    return TaskOutcome(
        status=TaskStatus.FAILED,
        error=failure.error,
        error_type=ErrorType.PROVISION_FAILED,
        verdict=Verdict.TIMED_OUT,
        failure=failure,
    )
