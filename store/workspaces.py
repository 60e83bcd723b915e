"""Workspaces and their attempts: who is wanted, what became of each wait, what the agent says of itself."""

import builtins
from datetime import datetime
from typing import Any

from messages.activities import WorkspaceHandle
from messages.callbacks import BootLogBody, HeartbeatBody, log_tail
from messages.statuses import (
    BackendKind,
    EventKind,
    FailureSource,
    Readiness,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure, TaskInput
from messages.templates import WorkspaceAgent
from messages.views import BootLogEntry, WorkspaceView
from store.attempts import begin_attempt
from store.changes import CHANNEL
from store.database import Connection, Group, scalar, statement, transaction
from store.records import AttemptState, Beat
from store.task_env import forget_env
from store.transitions import (
    LockedWorkspace,
    lock_task,
    lock_workspace,
    move_step,
    move_workspace,
    read_workspace,
    record_event,
    record_failure,
)
from store.values import believable, clean_or_none, clean_text, jsonb

BOOT_LOG_ENTRIES = 50
"""How many entries of an attempt's boot log are kept, the newest."""

_PROGRESS_CHARS = 500

_IS_WANTED = """
    SELECT 1 AS wanted FROM workspaces WHERE id = %(workspace_id)s AND attempt = %(attempt)s AND status = %(status)s
"""
_PROVISIONED = """
    UPDATE workspaces SET harness_url = %(harness_url)s, name = %(name)s, progress = NULL
    WHERE id = %(workspace_id)s AND attempt = %(attempt)s AND status = %(status)s
"""
_PROGRESS = """
    UPDATE workspaces SET progress = %(text)s
    WHERE id = %(workspace_id)s AND attempt = %(attempt)s AND status = %(status)s
"""
_VERDICT = """
    WITH first AS (
        UPDATE attempts SET verdict = %(verdict)s, verdict_at = now(), failure_source = %(source)s
        WHERE workspace_id = %(workspace_id)s AND attempt = %(attempt)s AND verdict IS NULL
        RETURNING workspace_id, verdict
    )
    UPDATE workspaces SET verdict = first.verdict FROM first WHERE workspaces.id = first.workspace_id
"""
_SUSPECT = """
    UPDATE workspaces SET leak_suspected_at = now()
    WHERE id = %(workspace_id)s AND leak_suspected_at IS NULL AND status <> %(removed)s
"""
_GET = """
    SELECT to_jsonb(w) || jsonb_build_object('boot_log', (
               SELECT coalesce(jsonb_agg(to_jsonb(b) ORDER BY b.id), '[]') FROM boot_log b WHERE b.workspace_id = w.id
           )) AS workspace
    FROM workspaces w
    WHERE w.id = %(workspace_id)s
"""
_LIST = """
    SELECT to_jsonb(w) AS workspace
    FROM workspaces w
    WHERE %(status)s::workspace_status IS NULL OR w.status = %(status)s
    ORDER BY w.created_at DESC, w.id DESC
    LIMIT %(limit)s
"""
_ATTEMPT_STATE = "SELECT id, attempt, status, owner_workflow_id, verdict FROM workspaces WHERE id = %(workspace_id)s"
_HEARTBEAT = """
    UPDATE workspaces
    SET last_heartbeat_at = now(), heartbeat_state = %(state)s, heartbeat_reason = %(reason)s,
        heartbeat = %(heartbeat)s
    WHERE id = %(workspace_id)s AND attempt = %(attempt)s
"""
_BEATS = """
    SELECT w.id AS workspace_id, w.attempt, w.task_id, w.backend, w.host_id, w.harness_url,
           session.since IS NOT NULL AS has_session, w.last_heartbeat_at IS NOT NULL AS has_beaten,
           coalesce(extract(epoch FROM now() - coalesce(
               w.last_heartbeat_at,
               CASE WHEN t.input #>> %(which_agent)s::text[] IS DISTINCT FROM %(no_agent)s THEN session.since END
           )), 0)::float8 AS silent_seconds,
           extract(epoch FROM (t.input->'template'->>'heartbeat_interval')::interval)::float8 AS interval_seconds
    FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
    CROSS JOIN LATERAL (
        SELECT max(s.created_at) AS since FROM sessions s
        WHERE s.workspace_id = w.id AND s.attempt = w.attempt AND s.status = ANY(%(open)s::session_status[])
    ) session
    WHERE t.status = %(running)s AND w.status = ANY(%(alive)s::workspace_status[])
"""
_WHICH_AGENT = ["template", "container", "workspace_agent"]
"""Where a task's input says which agent is in its image."""
_ALIVE = (WorkspaceStatus.PROVISIONING, WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED)
_LOCK_CURRENT = """
    SELECT 1 AS current FROM workspaces WHERE id = %(workspace_id)s AND attempt = %(attempt)s FOR NO KEY UPDATE
"""
# The statement does not see its own new row, hence one entry fewer of the old ones stays.
_APPEND_BOOT_LOG = """
    WITH added AS (
        INSERT INTO boot_log (workspace_id, attempt, step, status, message, detail, timestamp)
        VALUES (
            %(workspace_id)s, %(attempt)s, %(step)s, %(status)s, %(message)s, %(detail)s, %(timestamp)s
        )
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    DELETE FROM boot_log
    WHERE EXISTS (SELECT FROM added) AND id IN (
        SELECT id FROM boot_log WHERE workspace_id = %(workspace_id)s AND attempt = %(attempt)s
        ORDER BY id DESC OFFSET %(kept)s
    )
"""
_NOTIFY_OF_BOOT_LOG = "SELECT pg_notify(%(channel)s, task_id) FROM workspaces WHERE id = %(workspace_id)s"
_READ_BOOT_LOG = """
    SELECT b.* FROM boot_log b JOIN workspaces w ON b.workspace_id = w.id
    WHERE w.task_id = %(task_id)s AND b.id > %(after)s
    ORDER BY b.id
"""


class WorkspaceStore(Group):
    """The workspaces."""

    @transaction
    async def begin_attempt(
        self, connection: Connection, task: TaskInput, attempt: int, *, host_id: str, workflow_id: str
    ) -> datetime:
        """Write down an attempt before its compute is created, and return when it was created (UTC).

        Workspace and attempt are recorded, the workspace is ``provisioning``, the task is at that step. Repeating the
        call gives the same answer. Raises :class:`AttemptSuperseded` where the attempt is not (or no longer) to be
        provisioned, and :class:`RegistryError` where the task was never recorded.
        """
        return await begin_attempt(connection, task, attempt, host_id=host_id, workflow_id=workflow_id)

    @statement
    async def is_wanted(self, connection: Connection, workspace_id: str, attempt: int) -> bool:
        """Tell whether this is the workspace's current attempt, and it is still being provisioned."""
        return (
            await scalar(
                connection,
                _IS_WANTED,
                {"workspace_id": workspace_id, "attempt": attempt, "status": WorkspaceStatus.PROVISIONING},
            )
            is not None
        )

    @transaction
    async def record_provisioned(self, connection: Connection, handle: WorkspaceHandle) -> bool:
        """Record where the attempt's agent listens; a task that is not ready at once now waits for that.

        False where the attempt is not the current one, or no longer being provisioned.
        """
        workspace = await lock_workspace(connection, handle.workspace_id)
        if workspace is None:
            return False
        recorded = await connection.execute(
            _PROVISIONED,
            {
                "workspace_id": handle.workspace_id,
                "attempt": handle.attempt,
                "harness_url": handle.harness_url,
                "name": handle.name,
                "status": WorkspaceStatus.PROVISIONING,
            },
        )
        if not recorded.rowcount:
            return False
        if handle.readiness is not Readiness.IMMEDIATE and (task := await lock_task(connection, workspace.task_id)):
            await move_step(connection, task, TaskStep.WAITING_FOR_READY)
        return True

    @statement
    async def record_progress(self, connection: Connection, workspace_id: str, attempt: int, text: str) -> bool:
        """Say in one sentence how far the provisioning is, which whoever follows the task is shown; it leaves no event.

        It goes with the end of the provisioning, or by an empty text. False where the attempt is not the current one,
        or no longer being provisioned.
        """
        recorded = await connection.execute(
            _PROGRESS,
            {
                "workspace_id": workspace_id,
                "attempt": attempt,
                "text": clean_or_none(text[:_PROGRESS_CHARS]),
                "status": WorkspaceStatus.PROVISIONING,
            },
        )
        return bool(recorded.rowcount)

    @transaction
    async def record_verdict(
        self,
        connection: Connection,
        workspace_id: str,
        attempt: int,
        verdict: Verdict,
        failure: ProvisionFailure | None = None,
    ) -> bool:
        """Record what became of an attempt's wait; True for the first verdict only, which stands.

        ``ready`` takes the workspace online, the others take it to ``failed`` and leave the failure event. False, and
        nothing changed, where another verdict stands, or the attempt is not the one being provisioned.
        """
        workspace = await lock_workspace(connection, workspace_id)
        if workspace is None or workspace.attempt != attempt or workspace.status is not WorkspaceStatus.PROVISIONING:
            return False
        if verdict is Verdict.READY:
            failure = None
        elif failure is None:
            failure = _unexplained(workspace, verdict)
        names = {"workspace_id": workspace_id, "attempt": attempt, "verdict": verdict}
        first = await connection.execute(_VERDICT, {**names, "source": failure.source if failure else None})
        if not first.rowcount:
            return False
        await record_event(
            connection,
            EventKind.VERDICT,
            task_id=workspace.task_id,
            workspace_id=workspace_id,
            attempt=attempt,
            current=verdict,
        )
        if failure is None:
            return await move_workspace(connection, workspace, WorkspaceStatus.ONLINE)
        await record_failure(connection, workspace.task_id, failure)
        return await move_workspace(connection, workspace, WorkspaceStatus.FAILED, {"error": failure.error})

    @transaction
    async def begin_release(self, connection: Connection, task_id: str, workspace_id: str) -> bool:
        """Move the task to ``releasing`` and the workspace, where there is one, to ``stopping``; forget the task's env.

        False where the workspace did not move: it does not exist, is another task's, or is stopping or removed.
        """
        task = await lock_task(connection, task_id)
        if task is None:
            return False
        await move_step(connection, task, TaskStep.RELEASING)
        await forget_env(connection, task_id)
        workspace = await read_workspace(connection, workspace_id)
        if workspace is None or workspace.task_id != task_id:
            return False
        return await move_workspace(connection, workspace, WorkspaceStatus.STOPPING)

    @transaction
    async def record_removed(self, connection: Connection, workspace_id: str) -> bool:
        """Record that the compute is gone, which is final; True the first time."""
        workspace = await lock_workspace(connection, workspace_id)
        return workspace is not None and await move_workspace(connection, workspace, WorkspaceStatus.REMOVED)

    @transaction
    async def suspect_leak(self, connection: Connection, workspace_id: str, reason: str) -> bool:
        """Record that compute may still exist although nobody wants it: the workspace is ``failed``; True once.

        False where it was suspected before, or is removed.
        """
        workspace = await lock_workspace(connection, workspace_id)
        if workspace is None:
            return False
        suspected = await connection.execute(
            _SUSPECT, {"workspace_id": workspace_id, "removed": WorkspaceStatus.REMOVED}
        )
        if not suspected.rowcount:
            return False
        detail = {"reason": clean_text(reason) or "no reason was recorded"}
        await record_event(
            connection,
            EventKind.LEAK_SUSPECTED,
            task_id=workspace.task_id,
            workspace_id=workspace_id,
            attempt=workspace.attempt,
            detail=detail,
        )
        await move_workspace(connection, workspace, WorkspaceStatus.FAILED, detail)
        return True

    @statement
    async def get(self, connection: Connection, workspace_id: str) -> WorkspaceView | None:
        """Return a workspace with its boot log."""
        found = await scalar(connection, _GET, {"workspace_id": workspace_id})
        return WorkspaceView.model_validate(found) if found else None

    @statement
    async def list(
        self, connection: Connection, *, status: WorkspaceStatus | None = None, limit: int = 50
    ) -> builtins.list[WorkspaceView]:
        """Return at most ``limit`` (1 to 500) workspaces, newest first, without their boot logs."""
        found = await connection.execute(_LIST, {"status": status, "limit": min(max(limit, 1), 500)})
        return [WorkspaceView.model_validate(row["workspace"]) for row in await found.fetchall()]

    @statement
    async def attempt_state(self, connection: Connection, workspace_id: str) -> AttemptState | None:
        """Return a workspace's current attempt: one read by primary key."""
        row = await (await connection.execute(_ATTEMPT_STATE, {"workspace_id": workspace_id})).fetchone()
        if row is None:
            return None
        return AttemptState(
            workspace_id=row["id"],
            attempt=row["attempt"],
            status=WorkspaceStatus(row["status"]),
            owner_workflow_id=row["owner_workflow_id"],
            verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        )

    @statement
    async def record_heartbeat(
        self, connection: Connection, workspace_id: str, attempt: int, body: HeartbeatBody
    ) -> bool:
        """Record a heartbeat of the current attempt. It never changes a status and leaves no event."""
        beaten = await connection.execute(
            _HEARTBEAT,
            {
                "workspace_id": workspace_id,
                "attempt": attempt,
                "state": body.state,
                "reason": clean_or_none(body.reason),
                "heartbeat": jsonb(body.model_dump(mode="json", include={"sessions", "pending", "metrics"})),
            },
        )
        return bool(beaten.rowcount)

    @statement
    async def beats(self, connection: Connection) -> builtins.list[Beat]:
        """Return every living workspace of a running task, and for how long it has been silent."""
        open_sessions = [status for status in SessionStatus if not status.is_final]
        found = await connection.execute(
            _BEATS,
            {
                "open": open_sessions,
                "running": TaskStatus.RUNNING,
                "alive": list(_ALIVE),
                "which_agent": _WHICH_AGENT,
                "no_agent": WorkspaceAgent.NONE,
            },
        )
        return [_beat(row) for row in await found.fetchall()]

    @transaction
    async def append_boot_log(self, connection: Connection, workspace_id: str, attempt: int, body: BootLogBody) -> bool:
        """Add an entry to the current attempt's boot log, of which the newest 50 are kept; a repeat is stored once."""
        names = {"workspace_id": workspace_id, "attempt": attempt}
        if await scalar(connection, _LOCK_CURRENT, names) is None:
            return False
        await connection.execute(
            _APPEND_BOOT_LOG,
            {
                **names,
                "step": clean_text(body.step),
                "status": body.status,
                "message": clean_text(body.message),
                "detail": clean_or_none(log_tail(body.detail or "")),
                "timestamp": believable(body.timestamp),
                "kept": BOOT_LOG_ENTRIES - 1,
            },
        )
        await connection.execute(_NOTIFY_OF_BOOT_LOG, {"channel": CHANNEL, "workspace_id": workspace_id})
        return True

    @statement
    async def boot_log(self, connection: Connection, task_id: str, *, after: int = 0) -> builtins.list[BootLogEntry]:
        """Return what is kept of the boot log of a task's workspace since the entry ``after``, oldest first."""
        found = await connection.execute(_READ_BOOT_LOG, {"task_id": task_id, "after": after})
        return [BootLogEntry.model_validate(row) for row in await found.fetchall()]


def _beat(row: dict[str, Any]) -> Beat:
    row["backend"] = BackendKind(row["backend"])
    return Beat(**row)


def _unexplained(workspace: LockedWorkspace, verdict: Verdict) -> ProvisionFailure:
    timed_out = verdict is Verdict.TIMED_OUT
    return ProvisionFailure(
        source=FailureSource.PROVISION_TIMEOUT if timed_out else FailureSource.BOOTSTRAP,
        backend=BackendKind(workspace.backend),
        workspace_id=workspace.id,
        attempt=workspace.attempt,
        error=f"{workspace.backend} workspace {workspace.id} never became ready: no reason was recorded",
    )
