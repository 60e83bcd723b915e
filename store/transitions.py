"""Guarded transitions: each changes a status from where that is legal and leaves one event, or changes nothing.

Whoever makes a transition holds the row lock of its task: transitions of one task, and the ids of its events, have one
order, and there is one order of locks.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString, TypeVar

from psycopg.rows import class_row

from messages.statuses import (
    SESSION_TRANSITIONS,
    TASK_TRANSITIONS,
    WORKSPACE_TRANSITIONS,
    EventKind,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure
from store.database import Connection
from store.values import jsonb, message_jsonb

S = TypeVar("S", bound=StrEnum)

_LOCK_TASK = "SELECT id, status, step FROM tasks WHERE id = %(id)s FOR NO KEY UPDATE"
_LOCK_TASK_OF_WORKSPACE = """
    SELECT id FROM tasks WHERE id = (SELECT task_id FROM workspaces WHERE id = %(id)s) FOR NO KEY UPDATE
"""
_LOCK_TASK_OF_SESSION = """
    SELECT id FROM tasks WHERE id = (SELECT task_id FROM sessions WHERE id = %(id)s) FOR NO KEY UPDATE
"""
_WORKSPACE = """
    SELECT id, task_id, backend, status, attempt, owner_workflow_id FROM workspaces WHERE id = %(id)s
"""
_SESSION = "SELECT id, task_id, workspace_id, attempt, status FROM sessions WHERE id = %(id)s"

_MOVE_TASK = """
    WITH moved AS (
        UPDATE tasks SET status = %(to)s
        WHERE id = %(id)s AND status = ANY(%(allowed)s::task_status[])
        RETURNING id, status
    )
    INSERT INTO events (task_id, kind, previous, current, detail)
    SELECT id, %(kind)s, %(previous)s, status, %(detail)s FROM moved
"""
_MOVE_STEP = """
    WITH moved AS (
        UPDATE tasks SET step = %(to)s, last_error = NULL
        WHERE id = %(id)s AND status = %(running)s AND (step IS NULL OR step = ANY(%(allowed)s::task_step[]))
        RETURNING id, workspace_id, step
    )
    INSERT INTO events (task_id, kind, previous, current)
    SELECT id, %(kind)s, %(previous)s, step FROM moved
"""
_MOVE_WORKSPACE = """
    WITH moved AS (
        UPDATE workspaces SET status = %(to)s, progress = NULL
        WHERE id = %(id)s AND status = ANY(%(allowed)s::workspace_status[])
        RETURNING id, task_id, attempt, status
    )
    INSERT INTO events (task_id, workspace_id, attempt, kind, previous, current, detail)
    SELECT task_id, id, attempt, %(kind)s, %(previous)s, status, %(detail)s FROM moved
"""
_MOVE_SESSION = """
    WITH moved AS (
        UPDATE sessions SET status = %(to)s
        WHERE id = %(id)s AND status = ANY(%(allowed)s::session_status[])
        RETURNING id, task_id, workspace_id, attempt, status
    )
    INSERT INTO events (task_id, workspace_id, attempt, session_id, kind, previous, current, detail)
    SELECT task_id, workspace_id, attempt, id, %(kind)s, %(previous)s, status, %(detail)s FROM moved
"""
_RECORD_EVENT = """
    INSERT INTO events (task_id, workspace_id, attempt, session_id, kind, previous, current, detail)
    VALUES (%(task_id)s, %(workspace_id)s, %(attempt)s, %(session_id)s, %(kind)s, %(previous)s, %(current)s, %(detail)s)
"""
_RECORD_FAILURE = """
    INSERT INTO events (task_id, workspace_id, attempt, kind, detail)
    VALUES (%(task_id)s, %(workspace_id)s, %(attempt)s, %(kind)s, %(detail)s)
    ON CONFLICT DO NOTHING
"""


@dataclass(slots=True)
class LockedTask:
    """A task whose row lock this transaction holds."""

    id: str
    status: TaskStatus
    step: TaskStep | None

    def __post_init__(self) -> None:
        self.status = TaskStatus(self.status)
        self.step = self.step and TaskStep(self.step)


@dataclass(slots=True)
class LockedWorkspace:
    """A workspace whose task's row lock this transaction holds."""

    id: str
    task_id: str
    backend: str
    status: WorkspaceStatus
    attempt: int
    owner_workflow_id: str

    def __post_init__(self) -> None:
        self.status = WorkspaceStatus(self.status)


@dataclass(slots=True)
class LockedSession:
    """A session whose task's row lock this transaction holds."""

    id: str
    task_id: str
    workspace_id: str
    attempt: int
    status: SessionStatus

    def __post_init__(self) -> None:
        self.status = SessionStatus(self.status)


async def lock_task(connection: Connection, task_id: str) -> LockedTask | None:
    """Lock a task until the end of the transaction."""
    async with connection.cursor(row_factory=class_row(LockedTask)) as cursor:
        await cursor.execute(_LOCK_TASK, {"id": task_id})
        return await cursor.fetchone()


async def lock_workspace(connection: Connection, workspace_id: str) -> LockedWorkspace | None:
    """Lock a workspace's task and read the workspace."""
    await connection.execute(_LOCK_TASK_OF_WORKSPACE, {"id": workspace_id})
    return await read_workspace(connection, workspace_id)


async def read_workspace(connection: Connection, workspace_id: str) -> LockedWorkspace | None:
    """Read a workspace whose task is locked already."""
    async with connection.cursor(row_factory=class_row(LockedWorkspace)) as cursor:
        await cursor.execute(_WORKSPACE, {"id": workspace_id})
        return await cursor.fetchone()


async def lock_session(connection: Connection, session_id: str) -> LockedSession | None:
    """Lock a session's task and read the session."""
    await connection.execute(_LOCK_TASK_OF_SESSION, {"id": session_id})
    async with connection.cursor(row_factory=class_row(LockedSession)) as cursor:
        await cursor.execute(_SESSION, {"id": session_id})
        return await cursor.fetchone()


def before(transitions: Mapping[S, Set[S]], to: S) -> list[S]:
    """Return the statuses from which ``to`` may be reached."""
    return [status for status, following in transitions.items() if to in following]


def steps_before(to: TaskStep) -> list[TaskStep]:
    """Return the steps from which ``to`` may be reached: the earlier ones; a follow-up leads back to its session."""
    steps = list(TaskStep)
    back = [TaskStep.AWAITING_FOLLOWUP] if to is TaskStep.SESSION_RUNNING else []
    return steps[: steps.index(to)] + back


async def _moved(
    connection: Connection,
    statement: LiteralString,
    kind: EventKind,
    row: LockedTask | LockedWorkspace | LockedSession,
    *,
    to: StrEnum,
    allowed: Sequence[StrEnum],
    detail: dict[str, Any] | None,
) -> bool:
    moved = await connection.execute(
        statement,
        {
            "id": row.id,
            "to": to,
            "allowed": list(allowed),
            "previous": row.status,
            "kind": kind,
            "detail": jsonb(detail or {}),
        },
    )
    return bool(moved.rowcount)


async def move_task(
    connection: Connection, task: LockedTask, to: TaskStatus, detail: dict[str, Any] | None = None
) -> bool:
    """Move a task to another status, if that is legal."""
    allowed = before(TASK_TRANSITIONS, to)
    if not await _moved(connection, _MOVE_TASK, EventKind.TASK_STATUS, task, to=to, allowed=allowed, detail=detail):
        return False
    task.status = to
    return True


async def move_step(connection: Connection, task: LockedTask, to: TaskStep, *, anew: bool = False) -> bool:
    """Move a running task forward to a step; ``anew``, for a new attempt, allows any way but to the same step."""
    allowed = [step for step in TaskStep if step is not to] if anew else steps_before(to)
    moved = await connection.execute(
        _MOVE_STEP,
        {
            "id": task.id,
            "to": to,
            "running": TaskStatus.RUNNING,
            "allowed": allowed,
            "previous": task.step,
            "kind": EventKind.TASK_STEP,
        },
    )
    if moved.rowcount:
        task.step = to
    return bool(moved.rowcount)


async def move_workspace(
    connection: Connection, workspace: LockedWorkspace, to: WorkspaceStatus, detail: dict[str, Any] | None = None
) -> bool:
    """Move a workspace to another status, if that is legal."""
    allowed = before(WORKSPACE_TRANSITIONS, to)
    if not await _moved(
        connection, _MOVE_WORKSPACE, EventKind.WORKSPACE_STATUS, workspace, to=to, allowed=allowed, detail=detail
    ):
        return False
    workspace.status = to
    return True


async def move_session(
    connection: Connection, session: LockedSession, to: SessionStatus, detail: dict[str, Any] | None = None
) -> bool:
    """Move a session to another status, if that is legal."""
    allowed = before(SESSION_TRANSITIONS, to)
    if not await _moved(
        connection, _MOVE_SESSION, EventKind.SESSION_STATUS, session, to=to, allowed=allowed, detail=detail
    ):
        return False
    session.status = to
    return True


async def record_event(
    connection: Connection,
    kind: EventKind,
    *,
    task_id: str,
    workspace_id: str | None = None,
    attempt: int | None = None,
    session_id: str | None = None,
    previous: TaskStatus | WorkspaceStatus | SessionStatus | None = None,
    current: TaskStatus | WorkspaceStatus | SessionStatus | Verdict | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Write an event that no status change brings with it; the caller holds the task's lock."""
    await connection.execute(
        _RECORD_EVENT,
        {
            "task_id": task_id,
            "workspace_id": workspace_id,
            "attempt": attempt,
            "session_id": session_id,
            "kind": kind,
            "previous": previous,
            "current": current,
            "detail": jsonb(detail or {}),
        },
    )


async def record_failure(connection: Connection, task_id: str, failure: ProvisionFailure) -> bool:
    """Write the ``WORKSPACE_PROVISION_FAILED`` event, unless the attempt has one already."""
    written = await connection.execute(
        _RECORD_FAILURE,
        {
            "task_id": task_id,
            "workspace_id": failure.workspace_id,
            "attempt": failure.attempt,
            "kind": EventKind.WORKSPACE_PROVISION_FAILED,
            "detail": message_jsonb(failure),
        },
    )
    return bool(written.rowcount)
