"""How an attempt begins: written down before its compute exists, once, and only where it is wanted."""

from datetime import datetime
from typing import Any

from messages.names import compute_name
from messages.statuses import BackendKind, EventKind, TaskStep, WorkspaceStatus
from messages.tasks import TaskInput
from store.database import Connection, scalar
from store.errors import AttemptSuperseded, RegistryError
from store.transitions import (
    LockedTask,
    LockedWorkspace,
    lock_task,
    move_step,
    move_workspace,
    read_workspace,
    record_event,
)

_CREATE = """
    INSERT INTO workspaces (id, task_id, backend, status, attempt, owner_workflow_id, host_id, name)
    VALUES (
        %(workspace_id)s, %(task_id)s, %(backend)s, %(status)s, %(attempt)s, %(workflow_id)s, %(host_id)s, %(name)s
    )
"""
_CREATE_ATTEMPT = """
    INSERT INTO attempts (workspace_id, attempt, task_id, workflow_id, host_id)
    VALUES (%(workspace_id)s, %(attempt)s, %(task_id)s, %(workflow_id)s, %(host_id)s)
    RETURNING created_at
"""
_NEW_ATTEMPT = """
    UPDATE workspaces
    SET attempt = %(attempt)s, host_id = %(host_id)s, name = %(name)s, harness_url = NULL, verdict = NULL,
        heartbeat_state = NULL, heartbeat_reason = NULL, heartbeat = NULL, last_heartbeat_at = NULL, progress = NULL
    WHERE id = %(workspace_id)s
"""
_CREATED_AT = "SELECT created_at FROM attempts WHERE workspace_id = %(workspace_id)s AND attempt = %(attempt)s"


async def begin_attempt(
    connection: Connection, task: TaskInput, attempt: int, *, host_id: str, workflow_id: str
) -> datetime:
    """Do what :meth:`store.workspaces.WorkspaceStore.begin_attempt` promises, in the caller's transaction."""
    locked = await lock_task(connection, task.task_id)
    if locked is None:
        raise RegistryError(f"task {task.task_id} is not recorded")
    if locked.status.is_final:
        raise AttemptSuperseded(f"task {task.task_id} has ended ({locked.status.value})")
    names = {
        "workspace_id": task.workspace_id,
        "attempt": attempt,
        "task_id": task.task_id,
        "workflow_id": workflow_id,
        "host_id": host_id,
        "name": compute_name(task.workspace_id, attempt),
    }
    workspace = await read_workspace(connection, task.workspace_id)
    if workspace is None:
        workspace = await _create(connection, names, task.template.backend)
        created_at = await _begin(connection, names, locked, workspace)
    elif workspace.attempt < attempt:
        _refuse_foreign(workspace, task.task_id, workflow_id)
        # The new number comes first, so that the event of the transition carries it.
        await connection.execute(_NEW_ATTEMPT, names)
        created_at = await _begin(connection, names, locked, workspace)
    else:
        _refuse_foreign(workspace, task.task_id, workflow_id)
        if workspace.attempt > attempt or workspace.status is not WorkspaceStatus.PROVISIONING:
            raise AttemptSuperseded(_superseded(workspace, attempt))
        created_at = await scalar(connection, _CREATED_AT, names)
    return created_at


async def _create(connection: Connection, names: dict[str, Any], backend: BackendKind) -> LockedWorkspace:
    await connection.execute(_CREATE, {**names, "backend": backend, "status": WorkspaceStatus.PENDING})
    await record_event(
        connection,
        EventKind.WORKSPACE_STATUS,
        task_id=names["task_id"],
        workspace_id=names["workspace_id"],
        attempt=names["attempt"],
        current=WorkspaceStatus.PENDING,
    )
    workspace = await read_workspace(connection, names["workspace_id"])
    assert workspace is not None  # written above
    return workspace


async def _begin(
    connection: Connection, names: dict[str, Any], task: LockedTask, workspace: LockedWorkspace
) -> datetime:
    if not await move_workspace(connection, workspace, WorkspaceStatus.PROVISIONING):
        raise AttemptSuperseded(_superseded(workspace, names["attempt"]))
    await move_step(connection, task, TaskStep.PROVISIONING, anew=names["attempt"] > 1)
    return await scalar(connection, _CREATE_ATTEMPT, names)


def _refuse_foreign(workspace: LockedWorkspace, task_id: str, workflow_id: str) -> None:
    if (workspace.task_id, workspace.owner_workflow_id) != (task_id, workflow_id):
        raise AttemptSuperseded(f"workspace {workspace.id} belongs to {workspace.owner_workflow_id}")


def _superseded(workspace: LockedWorkspace, attempt: int) -> str:
    return (
        f"workspace {workspace.id} does not want attempt {attempt}: "
        f"it is {workspace.status.value} at attempt {workspace.attempt}"
    )
