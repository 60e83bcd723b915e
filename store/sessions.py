"""Sessions and their output."""

from messages.signals import SessionFinished
from messages.statuses import SESSION_TRANSITIONS, EventKind, SessionStatus, TaskStep
from store.database import Connection, Group, statement, transaction
from store.errors import OutputGap, RegistryError, UnknownSession
from store.records import OutputAppended, OutputPiece
from store.transitions import before, lock_session, lock_task, move_session, move_step, record_event
from store.values import clean_or_none

_CREATE = """
    INSERT INTO sessions (id, task_id, workspace_id, attempt, turn, status)
    VALUES (%(id)s, %(task_id)s, %(workspace_id)s, %(attempt)s, %(turn)s, %(status)s)
    ON CONFLICT (id) DO NOTHING
"""
_STARTED = "UPDATE sessions SET started_at = now() WHERE id = %(id)s"
_FINISHED = """
    UPDATE sessions SET exit_code = %(exit_code)s, summary = %(summary)s, error = %(error)s, finished_at = now()
    WHERE id = %(id)s
"""
_WAITING = """
    UPDATE sessions SET summary = %(text)s
    WHERE id = %(id)s AND status = %(running)s AND summary IS DISTINCT FROM %(text)s
"""
_LOCK_OUTPUT = """
    SELECT output_bytes FROM sessions
    WHERE id = %(id)s AND workspace_id = %(workspace_id)s AND attempt = %(attempt)s
    FOR NO KEY UPDATE
"""
_APPEND_OUTPUT = """
    WITH piece AS (
        INSERT INTO session_output (session_id, start, data) VALUES (%(id)s, %(start)s, %(data)s) RETURNING session_id
    )
    UPDATE sessions SET output_bytes = %(end)s FROM piece WHERE sessions.id = piece.session_id
"""
# From the piece that holds the offset on: pieces follow each other without a gap.
_READ_OUTPUT = """
    WITH latest AS (
        SELECT id FROM sessions WHERE task_id = %(task_id)s ORDER BY attempt DESC, turn DESC LIMIT 1
    )
    SELECT o.start, o.data
    FROM session_output o JOIN latest ON o.session_id = latest.id
    WHERE o.start < %(end)s AND o.start >= coalesce(
        (SELECT max(f.start) FROM session_output f WHERE f.session_id = latest.id AND f.start <= %(offset)s), 0
    )
    ORDER BY o.start
"""

_MAX_OFFSET = 2**62
MAX_OUTPUT_BYTES = 256 * 1024 * 1024
"""How much of a session's output is kept: a program that never stops printing would fill the database's disk."""


class SessionStore(Group):
    """The sessions."""

    @transaction
    async def record_starting(
        self, connection: Connection, session_id: str, *, task_id: str, workspace_id: str, attempt: int, turn: int
    ) -> bool:
        """Record a session before it is asked for, and the task's step; repeating the call changes nothing.

        True where it was not recorded before, so that nobody can have asked for it. Raises :class:`RegistryError`
        where the task was never recorded.
        """
        task = await lock_task(connection, task_id)
        if task is None:
            raise RegistryError(f"task {task_id} is not recorded")
        created = await connection.execute(
            _CREATE,
            {
                "id": session_id,
                "task_id": task_id,
                "workspace_id": workspace_id,
                "attempt": attempt,
                "turn": turn,
                "status": SessionStatus.STARTING,
            },
        )
        if created.rowcount:
            await move_step(connection, task, TaskStep.CREATING_SESSION)
            await record_event(
                connection,
                EventKind.SESSION_STATUS,
                task_id=task_id,
                workspace_id=workspace_id,
                attempt=attempt,
                session_id=session_id,
                current=SessionStatus.STARTING,
            )
        return created.rowcount > 0

    @transaction
    async def record_waiting(self, connection: Connection, session_id: str, text: str) -> bool:
        """Record in words what a running session waits for, empty where it goes on; False where that is known."""
        session = await lock_session(connection, session_id)
        if session is None or session.status is not SessionStatus.RUNNING:
            return False
        cleaned = clean_or_none(text)
        changed = await connection.execute(
            _WAITING, {"id": session_id, "text": cleaned, "running": SessionStatus.RUNNING}
        )
        if not changed.rowcount:
            return False
        await record_event(
            connection,
            EventKind.SESSION_STATUS,
            task_id=session.task_id,
            workspace_id=session.workspace_id,
            attempt=session.attempt,
            session_id=session_id,
            previous=SessionStatus.RUNNING,
            current=SessionStatus.RUNNING,
            detail={"note": cleaned or "goes on"},
        )
        return True

    @transaction
    async def record_running(self, connection: Connection, session_id: str) -> bool:
        """Record that a session runs, and the task's step; False where it is not just starting."""
        session = await lock_session(connection, session_id)
        if session is None or not await move_session(connection, session, SessionStatus.RUNNING):
            return False
        await connection.execute(_STARTED, {"id": session_id})
        if task := await lock_task(connection, session.task_id):
            await move_step(connection, task, TaskStep.SESSION_RUNNING)
        return True

    @transaction
    async def finish(self, connection: Connection, end: SessionFinished) -> bool:
        """Record how a session ended; False where it has ended, is unknown or is another workspace's or attempt's.

        Raises ``ValueError`` for a status that is not final.
        """
        if not end.status.is_final:
            raise ValueError(f"a session cannot end as {end.status.value!r}")
        session = await lock_session(connection, end.session_id)
        if session is None or (session.workspace_id, session.attempt) != (end.workspace_id, end.attempt):
            return False
        if session.status not in before(SESSION_TRANSITIONS, end.status):
            return False
        error = clean_or_none(end.error)
        if error is None and end.status is not SessionStatus.COMPLETED:
            error = f"The session ended as {end.status.value} without a reason."
        await connection.execute(
            _FINISHED,
            {"id": end.session_id, "exit_code": end.exit_code, "summary": clean_or_none(end.summary), "error": error},
        )
        detail = {"exit_code": end.exit_code, "error": error}
        return await move_session(
            connection, session, end.status, {key: value for key, value in detail.items() if value is not None}
        )

    @transaction
    async def append_output(  # noqa: PLR0917 (its callers pass one argument less)
        self, connection: Connection, workspace_id: str, attempt: int, session_id: str, offset: int, text: str
    ) -> OutputAppended:
        """Store a piece of a session's output, ``offset`` bytes (UTF-8) after its beginning.

        What is stored already is not stored again, and what is beyond :data:`MAX_OUTPUT_BYTES` never: a line says so
        where the output was cut. Raises :class:`OutputGap` where output before the piece is missing and
        :class:`UnknownSession` where the attempt has no such session.
        """
        names = {"id": session_id, "workspace_id": workspace_id, "attempt": attempt}
        row = await (await connection.execute(_LOCK_OUTPUT, names)).fetchone()
        if row is None:
            raise UnknownSession(f"workspace {workspace_id} has no session {session_id} in attempt {attempt}")
        stored: int = row["output_bytes"]
        whole = text.encode("utf-8", "replace")
        if stored > MAX_OUTPUT_BYTES:  # the note has been written
            return OutputAppended(stored_bytes=0, next_offset=max(stored, offset + len(whole)))
        if offset > stored:
            raise OutputGap(session_id, expected=stored)
        piece = whole[stored - offset :]
        if not piece:
            return OutputAppended(stored_bytes=0, next_offset=stored)
        if stored + len(piece) > MAX_OUTPUT_BYTES:
            note = (
                f"\n[taskrunner keeps no more than the first {MAX_OUTPUT_BYTES // 1024**2} MiB of a session's output]\n"
            )
            piece = piece[: MAX_OUTPUT_BYTES - stored] + note.encode()
        end = stored + len(piece)
        await connection.execute(_APPEND_OUTPUT, {"id": session_id, "start": stored, "data": piece, "end": end})
        return OutputAppended(stored_bytes=len(piece), next_offset=end)

    @statement
    async def read_output(
        self, connection: Connection, task_id: str, *, offset: int = 0, limit_bytes: int = 256 * 1024
    ) -> OutputPiece:
        """Return at most ``limit_bytes`` of the output of the task's latest session, from ``offset`` (bytes) on.

        Empty where nothing is stored there, or there is no session. A character may be cut at either end.
        """
        offset = min(max(offset, 0), _MAX_OFFSET)
        limit_bytes = max(limit_bytes, 1)
        async with connection.cursor(binary=True) as cursor:
            await cursor.execute(_READ_OUTPUT, {"task_id": task_id, "offset": offset, "end": offset + limit_bytes})
            pieces = await cursor.fetchall()
        if not pieces:
            return OutputPiece(offset, b"", offset)
        begin = offset - pieces[0]["start"]
        data = b"".join(piece["data"] for piece in pieces)[begin : begin + limit_bytes]
        return OutputPiece(offset, data, offset + len(data))
