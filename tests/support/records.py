"""Short ways to the rows that a test of the registry begins with."""

from datetime import datetime
from typing import Any

from psycopg import sql

from messages.activities import WorkspaceHandle
from messages.names import compute_name, session_id, task_workflow_id
from messages.statuses import BackendKind, FailureSource, Readiness, TaskStatus, TaskStep, WorkspaceStatus
from messages.tasks import ProvisionFailure, TaskInput
from messages.templates import Template
from messages.views import SessionView
from store.database import Connection
from store.registry import Registry


def a_task(task_id: str = "t-1", **changes: Any) -> TaskInput:
    """A task on the local backend; its workspace is called like it, with ``w-``."""
    defaults: dict[str, Any] = {
        "task_id": task_id,
        "workspace_id": f"w-{task_id}",
        "prompt": "echo hello",
        "template": Template(name="local", backend=BackendKind.LOCAL),
    }
    return TaskInput(**{**defaults, **changes})


def a_handle(task: TaskInput, attempt: int = 1, readiness: Readiness = Readiness.CALLBACK) -> WorkspaceHandle:
    return WorkspaceHandle(
        workspace_id=task.workspace_id,
        attempt=attempt,
        backend=task.template.backend,
        name=compute_name(task.workspace_id, attempt),
        task_queue="taskrunner-host-here",
        harness_url="http://127.0.0.1:4711",
        readiness=readiness,
    )


def a_failure(task: TaskInput, attempt: int = 1, source: FailureSource = FailureSource.BOOTSTRAP) -> ProvisionFailure:
    return ProvisionFailure(
        source=source,
        backend=task.template.backend,
        workspace_id=task.workspace_id,
        attempt=attempt,
        error=f"{task.template.backend.value} workspace {task.workspace_id} never became ready: uv is missing",
        detail="sh: 1: uv: not found",
    )


async def queued(registry: Registry, task: TaskInput | None = None) -> TaskInput:
    task = task or a_task()
    await registry.tasks.create(task, digest=f"digest of {task.task_id}", idempotency_key=None)
    return task


async def running(registry: Registry, task: TaskInput | None = None) -> TaskInput:
    task = await queued(registry, task)
    assert await registry.tasks.begin(task.task_id)
    return task


async def provisioning(registry: Registry, task: TaskInput | None = None) -> TaskInput:
    task = await running(registry, task)
    await registry.workspaces.begin_attempt(task, 1, host_id="here", workflow_id=task_workflow_id(task.task_id))
    return task


async def starting(registry: Registry, task: TaskInput | None = None) -> tuple[TaskInput, str]:
    """A task whose first session has been recorded, and the session's id."""
    task = await provisioning(registry, task)
    session = session_id(task.workspace_id, 1, 1)
    await registry.sessions.record_starting(
        session, task_id=task.task_id, workspace_id=task.workspace_id, attempt=1, turn=1
    )
    return task, session


async def session_of(registry: Registry, task_id: str) -> SessionView | None:
    """The session that a task shows, which is its latest."""
    view = await registry.tasks.get(task_id)
    return view and view.session


async def put(
    registry: Registry,
    table: str,
    record_id: str,
    **columns: TaskStatus | TaskStep | WorkspaceStatus | datetime | str | None,
) -> None:
    """Set columns of a row, past all guards."""
    changes = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
    )
    query = sql.SQL("UPDATE {} SET {} WHERE id = {}").format(sql.Identifier(table), changes, sql.Placeholder("_id"))

    async def work(connection: Connection) -> None:
        assert (await connection.execute(query, {**columns, "_id": record_id})).rowcount == 1

    await registry.tasks.database.run(work, atomic=True)


async def rows(registry: Registry, table: str) -> list[dict[str, Any]]:
    """All rows of a table."""
    query = sql.SQL("SELECT * FROM {} ORDER BY 1, 2").format(sql.Identifier(table))

    async def work(connection: Connection) -> list[dict[str, Any]]:
        return await (await connection.execute(query)).fetchall()

    return await registry.tasks.database.run(work, atomic=False)
