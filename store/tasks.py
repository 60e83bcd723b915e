"""Tasks: created once, moved by guarded transitions, read whole or in pages."""

import base64
import json
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from messages.activities import Preflight
from messages.names import task_workflow_id
from messages.sealed import SealedEnv
from messages.statuses import TASK_TRANSITIONS, BackendKind, EventKind, TaskStatus, TaskStep
from messages.tasks import TaskInput, TaskOutcome
from messages.views import EventView, TaskPage, TaskSummary, TaskView
from store.database import Connection, Group, statement, transaction
from store.errors import InvalidCursor, NotStorable, TaskConflict
from store.records import Submission
from store.task_env import forget_env, keep_env
from store.transitions import before, lock_task, move_step, move_task, record_event, record_failure
from store.values import clean_text, message_jsonb

MAX_PAGE = 500
LISTED_PROMPT_CHARS = 1000
_LAST_ERROR_CHARS = 1000

_CREATE = """
    INSERT INTO tasks (
        id, status, backend, readiness, template, workspace_id, workflow_id, input, digest, idempotency_key
    ) VALUES (
        %(id)s, %(status)s, %(backend)s, %(readiness)s, %(template)s, %(workspace_id)s, %(workflow_id)s, %(input)s,
        %(digest)s, %(idempotency_key)s
    )
    ON CONFLICT DO NOTHING
"""
_FIND_SUBMITTED = """
    SELECT id, input, digest, status FROM tasks
    WHERE id = %(id)s OR idempotency_key = %(idempotency_key)s
    ORDER BY digest = %(digest)s -- one that differs comes first
"""
_STARTED = "UPDATE tasks SET started_at = now() WHERE id = %(id)s"
_PREFLIGHT = """
    UPDATE tasks
    SET host_id = %(host_id)s, base_commit = %(base_commit)s, provision_timeout_seconds = %(seconds)s,
        provision_timeout_rule = %(rule)s
    WHERE id = %(id)s AND status = %(running)s
"""
_RECORD_RETRY = "UPDATE tasks SET last_error = %(error)s WHERE id = %(id)s AND status = %(running)s"
_NEWS = """
    SELECT t.last_error, w.progress FROM tasks t LEFT JOIN workspaces w ON w.id = t.workspace_id
    WHERE t.id = %(id)s
"""
_FINISHED = """
    UPDATE tasks
    SET error = %(error)s, error_type = %(error_type)s, failure = %(failure)s, finished_at = now(), last_error = NULL
    WHERE id = %(id)s
"""
# One statement, hence one snapshot: status, workspace, session and result belong together. A task is at a step while it
# runs; its row keeps the last one, which says no more than the events.
_GET = """
    SELECT t.id, t.status, CASE WHEN t.status = %(running)s THEN t.step END AS step,
           t.backend, t.template, t.input->>'prompt' AS prompt, t.error, t.created_at,
           t.started_at, t.finished_at, t.workflow_id, t.workspace_id, t.input->'repository' AS repository,
           t.input->>'ref' AS ref, coalesce(t.input->'env_names', '[]') AS env_names,
           t.readiness, t.provision_timeout_seconds, t.provision_timeout_rule, t.failure,
           t.last_error,
           (SELECT coalesce(jsonb_agg(jsonb_build_object('step', e.current, 'at', e.at) ORDER BY e.id), '[]')
            FROM events e WHERE e.task_id = t.id AND e.kind = %(step_kind)s) AS steps,
           (SELECT to_jsonb(w) || jsonb_build_object('boot_log', (
                SELECT coalesce(jsonb_agg(to_jsonb(b) ORDER BY b.id), '[]') FROM boot_log b WHERE b.workspace_id = w.id
            )) FROM workspaces w WHERE w.id = t.workspace_id) AS workspace,
           (SELECT to_jsonb(s) FROM sessions s WHERE s.task_id = t.id ORDER BY s.attempt DESC, s.turn DESC LIMIT 1)
               AS session,
           (SELECT r.result FROM results r WHERE r.task_id = t.id) AS result
    FROM tasks t
    WHERE t.id = %(id)s
"""
_EVENTS = """
    SELECT id, task_id, workspace_id, session_id, kind, previous, current, detail, at
    FROM events
    WHERE task_id = %(task_id)s AND id > %(after)s
    ORDER BY id
    LIMIT %(limit)s
"""
_COUNT = "SELECT status, count(*) AS tasks FROM tasks GROUP BY status"
_LIST = """
    SELECT id, status, CASE WHEN status = %(running)s THEN step END AS step, backend, template,
           left(input->>'prompt', %(prompt_chars)s) AS prompt, error, created_at, started_at, finished_at
    FROM tasks
    WHERE (%(status)s::task_status IS NULL OR status = %(status)s)
      AND (%(step)s::task_step IS NULL OR (step = %(step)s AND status = %(running)s))
      AND (%(backend)s::backend_kind IS NULL OR backend = %(backend)s)
      AND (%(before)s::timestamptz IS NULL OR (created_at, id) < (%(before)s, %(before_id)s))
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s
"""


class TaskStore(Group):
    """The tasks."""

    async def create(
        self, task: TaskInput, *, digest: str, idempotency_key: str | None, env: SealedEnv | None = None
    ) -> Submission:
        """Store a task as ``queued``, or return the one that stands for its id or its idempotency key already.

        ``env`` holds the values of the task's ``env_names``, and is stored with a task that is created. ``digest`` is
        the caller's hash of the request. Raises :class:`TaskConflict` where what is stored came from another request,
        and :class:`NotStorable` for a task that cannot be stored. Of two equal calls at once, one creates.
        """
        try:
            return await self._create(task, digest, idempotency_key, env)
        except psycopg.errors.UntranslatableCharacter as e:
            raise NotStorable("the task holds a NUL character, which cannot be stored") from e

    @statement
    async def find_submitted(
        self, connection: Connection, task_id: str | None, *, digest: str, idempotency_key: str | None
    ) -> Submission | None:
        """Return the task that stands for an id or an idempotency key, or None; what ``create`` says of conflicts."""
        return await _find_submitted(connection, task_id, digest, idempotency_key)

    @transaction
    async def _create(
        self,
        connection: Connection,
        task: TaskInput,
        digest: str,
        idempotency_key: str | None,
        env: SealedEnv | None,
    ) -> Submission:
        created = await connection.execute(
            _CREATE,
            {
                "id": task.task_id,
                "digest": digest,
                "idempotency_key": idempotency_key,
                "status": TaskStatus.QUEUED,
                "backend": task.template.backend,
                "readiness": task.template.effective_readiness,
                "template": task.template.name,
                "workspace_id": task.workspace_id,
                "workflow_id": task_workflow_id(task.task_id),
                "input": Jsonb(task.model_dump(mode="json")),
            },
        )
        if created.rowcount:
            if env is not None:
                await keep_env(connection, task.task_id, env)
            await record_event(connection, EventKind.TASK_STATUS, task_id=task.task_id, current=TaskStatus.QUEUED)
            return Submission(task, created=True, status=TaskStatus.QUEUED)
        found = await _find_submitted(connection, task.task_id, digest, idempotency_key)
        if found is None:  # tasks are never deleted
            raise TaskConflict(task.task_id, f"task {task.task_id} vanished while it was submitted again; try again")
        return found

    @transaction
    async def begin(self, connection: Connection, task_id: str) -> bool:
        """Move a queued task to ``running`` and ``preflight``; False where it is not queued."""
        task = await lock_task(connection, task_id)
        if task is None or task.status is not TaskStatus.QUEUED:
            return False
        await move_task(connection, task, TaskStatus.RUNNING)
        await move_step(connection, task, TaskStep.PREFLIGHT, anew=True)
        await connection.execute(_STARTED, {"id": task_id})
        return True

    @statement
    async def record_preflight(self, connection: Connection, task_id: str, preflight: Preflight) -> None:
        """Record what preflight resolved, unless the task has ended meanwhile."""
        await connection.execute(
            _PREFLIGHT,
            {
                "id": task_id,
                "host_id": preflight.host_id,
                "base_commit": preflight.base_commit,
                "seconds": preflight.provision_timeout_seconds,
                "rule": preflight.provision_timeout_rule,
                "running": TaskStatus.RUNNING,
            },
        )

    @statement
    async def record_retry(self, connection: Connection, task_id: str, error: str) -> None:
        """Record why what a running task is at is tried again; it is forgotten with the task's next step."""
        given = {"id": task_id, "running": TaskStatus.RUNNING, "error": clean_text(error)[:_LAST_ERROR_CHARS] or None}
        await connection.execute(_RECORD_RETRY, given)

    @statement
    async def news(self, connection: Connection, task_id: str) -> tuple[str | None, str | None]:
        """Return why what a task is at is tried again, and how far its provisioning is; None where neither is known."""
        row = await (await connection.execute(_NEWS, {"id": task_id})).fetchone()
        return (row["last_error"], row["progress"]) if row else (None, None)

    @transaction
    async def advance(self, connection: Connection, task_id: str, step: TaskStep) -> bool:
        """Move a running task forward to ``step``; False where it does not run, or is there or further already."""
        task = await lock_task(connection, task_id)
        return task is not None and await move_step(connection, task, step)

    @transaction
    async def finish(self, connection: Connection, task_id: str, outcome: TaskOutcome) -> bool:
        """Give a task its final status, with the reason; False where that is not legal, as when it has one.

        Raises ``ValueError`` for an outcome that is not final. Where the outcome carries a provisioning failure that
        has no event yet, this writes it.
        """
        if not outcome.status.is_final:
            raise ValueError(f"a task cannot end as {outcome.status.value!r}")
        task = await lock_task(connection, task_id)
        if task is None or task.status not in before(TASK_TRANSITIONS, outcome.status):
            return False
        error = clean_text(outcome.error) or None
        if error is None and outcome.status is not TaskStatus.COMPLETED:
            error = f"The task ended as {outcome.status.value} without a reason."
        if outcome.failure is not None:
            await record_failure(connection, task_id, outcome.failure)
        await forget_env(connection, task_id)
        await connection.execute(
            _FINISHED,
            {
                "id": task_id,
                "error": error,
                "error_type": outcome.error_type,
                "failure": message_jsonb(outcome.failure),
            },
        )
        detail = {"error": error, "error_type": outcome.error_type} if error else {}
        return await move_task(connection, task, outcome.status, detail)

    @statement
    async def get(self, connection: Connection, task_id: str) -> TaskView | None:
        """Return a task with all that is known of it; ``ui_url`` is the API's to fill in."""
        given = {"id": task_id, "running": TaskStatus.RUNNING, "step_kind": EventKind.TASK_STEP}
        row = await (await connection.execute(_GET, given)).fetchone()
        return TaskView.model_validate(row) if row else None

    @statement
    async def events(
        self, connection: Connection, task_id: str, *, after: int = 0, limit: int = 500
    ) -> list[EventView]:
        """Return a task's events after the one with id ``after``, oldest first."""
        async with connection.cursor(row_factory=class_row(EventView)) as cursor:
            await cursor.execute(_EVENTS, {"task_id": task_id, "after": after, "limit": max(0, limit)})
            return await cursor.fetchall()

    @statement
    async def count_by_status(self, connection: Connection) -> dict[TaskStatus, int]:
        """Return how many tasks there are, by status; a status that none has is left out."""
        rows = await (await connection.execute(_COUNT)).fetchall()
        return {TaskStatus(row["status"]): row["tasks"] for row in rows}

    @statement
    async def list(
        self,
        connection: Connection,
        *,
        status: TaskStatus | None = None,
        step: TaskStep | None = None,
        backend: BackendKind | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> TaskPage:
        """Return a page of at most ``limit`` (1 to 500) tasks, newest first, with prompts cut to 1,000 characters.

        ``cursor`` is a page's ``next_cursor``; raises :class:`InvalidCursor` for anything else.
        """
        limit = min(max(limit, 1), MAX_PAGE)
        position = (None, None) if cursor is None else _read_cursor(cursor)
        parameters: dict[str, Any] = {
            "status": status,
            "step": step,
            "running": TaskStatus.RUNNING,
            "backend": backend,
            "before": position[0],
            "before_id": position[1],
            "limit": limit + 1,
            "prompt_chars": LISTED_PROMPT_CHARS,
        }
        async with connection.cursor(row_factory=class_row(TaskSummary)) as rows:
            await rows.execute(_LIST, parameters)
            tasks = await rows.fetchall()
        more = len(tasks) > limit
        tasks = tasks[:limit]
        return TaskPage(tasks=tasks, next_cursor=_write_cursor(tasks[-1]) if more else None)


async def _find_submitted(
    connection: Connection, task_id: str | None, digest: str, idempotency_key: str | None
) -> Submission | None:
    identity = {"id": task_id, "digest": digest, "idempotency_key": idempotency_key}
    row = await (await connection.execute(_FIND_SUBMITTED, identity)).fetchone()
    if row is None:
        return None
    if row["digest"] != digest:
        what = f"id {task_id!r}" if row["id"] == task_id else f"idempotency key {idempotency_key!r}"
        raise TaskConflict(row["id"], f"the {what} already stands for another request (task {row['id']})")
    return Submission(TaskInput.model_validate(row["input"]), created=False, status=TaskStatus(row["status"]))


def _write_cursor(last: TaskSummary) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.created_at.isoformat(), last.id]).encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, task_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        position = datetime.fromisoformat(created_at)
        if position.tzinfo is None or not isinstance(task_id, str) or "\0" in task_id:
            raise ValueError("no position")
    except (ValueError, TypeError) as e:
        raise InvalidCursor(f"{cursor!r} is not a cursor of this list; leave it out to begin anew") from e
    return position, task_id
