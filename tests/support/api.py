"""The API over a real socket, and what its tests need around it: tasks with workspaces, tokens, outages.

PYTEST_DONT_REWRITE: test modules import this before pytest makes it a plugin.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from api.dependencies import ApiDependencies
from api.server import running
from api.templates import TemplateFolder
from messages.keys import Keyring
from messages.names import TASK_RUNNER, session_id, task_workflow_id
from messages.statuses import BackendKind
from messages.tasks import TaskInput
from messages.templates import Template
from messages.tokens import mint_callback_token
from store.database import Connection
from store.errors import RegistryError
from store.registry import Registry

API_TOKEN = "tr-test-token-0123456789"
HOST_ID = "test-host"
_numbers = itertools.count(1)


def unique(prefix: str) -> str:
    """Return an id that nothing else in this run has."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Workspace:
    """One attempt of a task's workspace as it waits for its callbacks, and its workflow, which nobody works on."""

    task: TaskInput
    attempt: int
    keys: Keyring
    created_at: datetime
    workflow: WorkflowHandle[Any, Any]
    url: str

    @property
    def id(self) -> str:
        return self.task.workspace_id

    @property
    def workflow_id(self) -> str:
        return task_workflow_id(self.task.task_id)

    @property
    def session(self) -> str:
        return session_id(self.id, self.attempt, 1)

    @property
    def path(self) -> str:
        return f"{self.url}/api/workspaces/{self.id}"

    @property
    def token(self) -> str:
        return self.token_of(self.attempt)

    def token_of(self, attempt: int, *, age: timedelta = timedelta(0)) -> str:
        return mint_callback_token(
            self.keys,
            workspace_id=self.id,
            attempt=attempt,
            workflow_id=self.workflow_id,
            issued_at=self.created_at - age,
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class RunningApi:
    """A served API: a client that shows a user's token, and one that shows none."""

    def __init__(self, url: str, registry: Registry, temporal: Client, keys: Keyring) -> None:
        self.url = url
        self.registry = registry
        self.temporal = temporal
        self.keys = keys
        self.user = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {API_TOKEN}"}, timeout=20, trust_env=False
        )
        self.anyone = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)

    async def someone_waits(self, key: str) -> bool:
        """Tell whether a watch on ``key`` (a task, ``STORED_CALLBACKS``) waits, having seen everything so far."""
        return any(watch._changed._waiters for watch in self.registry.changes._watches.get(key, ()))

    async def hears_changes(self) -> None:
        """Return once the registry's listener listens, and has woken everybody who watched before."""

        async def notify(connection: Connection) -> None:
            await connection.execute("SELECT pg_notify('taskrunner', 'a-test')")

        async with self.registry.changes.watch("a-test") as changed:
            await self.registry.tasks.database.run(notify, atomic=False)
            await changed.wait()

    async def all_is_there(self) -> bool:
        return (await self.anyone.get("/readyz")).status_code == 200

    async def close(self) -> None:
        """Leave no workflow behind for the workers of later tests."""
        with suppress(RegistryError, RPCError, RuntimeError, TimeoutError):
            for task in (await self.registry.tasks.list(limit=500)).tasks:
                handle = self.temporal.get_workflow_handle(task_workflow_id(task.id))
                async with asyncio.timeout(1):  # Temporal may be away
                    with suppress(RPCError):
                        await handle.terminate()
        await self.user.aclose()
        await self.anyone.aclose()

    async def workspace(self, *, attempt: int = 1, registry: Registry | None = None) -> Workspace:
        """Record a task that waits for its workspace, and start a workflow for it on a queue without a worker."""
        registry = registry or self.registry
        name = unique("t")
        task = TaskInput(
            task_id=name,
            workspace_id=name.replace("t-", "w-", 1),
            prompt="true",
            template=Template(name="local", backend=BackendKind.LOCAL),
        )
        workflow = await self.temporal.start_workflow(
            TASK_RUNNER, task, id=task_workflow_id(name), task_queue=unique("nobody")
        )
        await registry.tasks.create(task, digest=name, idempotency_key=None)
        await registry.tasks.begin(name)
        created_at = await self.begin_attempt(task, attempt=1, registry=registry)
        for number in range(2, attempt + 1):
            created_at = await self.begin_attempt(task, attempt=number, registry=registry)
        return Workspace(task, attempt, self.keys, created_at, workflow, self.url)

    async def begin_attempt(self, task: TaskInput, *, attempt: int, registry: Registry | None = None) -> datetime:
        return await (registry or self.registry).workspaces.begin_attempt(
            task, attempt, host_id=HOST_ID, workflow_id=task_workflow_id(task.task_id)
        )

    async def with_session(self, workspace: Workspace) -> Workspace:
        """Record that the workspace's session was asked for."""
        await self.registry.sessions.record_starting(
            workspace.session,
            task_id=workspace.task.task_id,
            workspace_id=workspace.id,
            attempt=workspace.attempt,
            turn=1,
        )
        return workspace


@asynccontextmanager
async def serving(
    registry: Registry, temporal: Client, keys: Keyring, templates: TemplateFolder | None = None
) -> AsyncIterator[RunningApi]:
    """Serve the API on a free port."""
    given = ApiDependencies(
        registry=registry,
        temporal=temporal,
        keys=keys,
        templates=templates or TemplateFolder(),
        host_id=HOST_ID,
        ui_url="http://127.0.0.1:8233",
        environ={},
    )
    async with running(given, "127.0.0.1", 0) as server:
        api = RunningApi(server.url, registry, temporal, keys)
        try:
            yield api
        finally:
            await api.close()


@pytest.fixture
async def api(registry: Registry, temporal: Client, keys: Keyring) -> AsyncIterator[RunningApi]:
    """The API with everything there that it needs."""
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys) as running_api:
        yield running_api


async def eventually(condition: Callable[[], Awaitable[object]], *, seconds: float = 20) -> None:
    """Return once ``condition`` holds; for what nothing announces."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def signals(workflow: WorkflowHandle[Any, Any], *, wait_for: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Return name and argument of each signal in a workflow's history, or the first ``wait_for`` when they come."""
    found: list[tuple[str, dict[str, Any]]] = []
    async for event in workflow.fetch_history_events(wait_new_event=bool(wait_for)):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            signal = event.workflow_execution_signaled_event_attributes
            (argument,) = await workflow._client.data_converter.decode(list(signal.input.payloads))
            found.append((signal.signal_name, argument))
            if len(found) == wait_for:
                break
    return found


@contextmanager
def postgres_away(postgres: str, database_url: str) -> Iterator[None]:
    """Cut every connection to one database and let in no new one, for as long as the context lasts."""
    name = conninfo_to_dict(database_url)["dbname"]
    assert isinstance(name, str)
    with psycopg.connect(postgres, autocommit=True) as connection:

        def allow(allowed: bool) -> None:
            word = sql.SQL("true" if allowed else "false")
            connection.execute(
                sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(sql.Identifier(name), word)
            )

        allow(False)
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            allow(True)
