"""Callbacks that Temporal could not take when they came, stored until it can."""

from dataclasses import asdict

from psycopg.rows import class_row

from store.changes import CHANNEL
from store.database import Connection, Group, scalar, statement
from store.records import Callback, StoredCallback
from store.values import jsonb

STORED_CALLBACKS = "kept_callbacks"
"""What :meth:`store.changes.Changes.watch` is told to wake when a callback is stored; no task has an underscore."""

_STORE = """
    WITH stored AS (
        INSERT INTO kept_callbacks (workflow_id, signal, workspace_id, attempt, session_id, payload)
        VALUES (%(workflow_id)s, %(signal)s, %(workspace_id)s, %(attempt)s, %(session_id)s, %(payload)s)
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    SELECT pg_notify(%(channel)s, %(stored)s) FROM stored
"""
_UNDELIVERED = """
    SELECT id, workflow_id, signal, workspace_id, attempt, session_id, payload FROM kept_callbacks
    WHERE delivered_at IS NULL
    ORDER BY id
    LIMIT %(limit)s
"""
_COUNT_UNDELIVERED = "SELECT count(*) FROM kept_callbacks WHERE delivered_at IS NULL"
_DELIVERED = "UPDATE kept_callbacks SET delivered_at = now() WHERE id = %(id)s AND delivered_at IS NULL"
_FIND = """
    SELECT id, workflow_id, signal, workspace_id, attempt, session_id, payload FROM kept_callbacks
    WHERE workspace_id = %(workspace_id)s AND attempt = %(attempt)s AND delivered_at IS NULL
    ORDER BY id
"""


class CallbackStore(Group):
    """The callbacks that wait for Temporal."""

    @statement
    async def store(self, connection: Connection, callback: Callback) -> None:
        """Store a callback; the first of its workspace, attempt, signal and session counts, delivered or not.

        Wakes the watches on :data:`STORED_CALLBACKS`, of every process.
        """
        given = {**asdict(callback), "payload": jsonb(callback.payload)}
        await connection.execute(_STORE, {**given, "channel": CHANNEL, "stored": STORED_CALLBACKS})

    @statement
    async def undelivered(self, connection: Connection, limit: int = 100) -> list[StoredCallback]:
        """Return the oldest callbacks that have not been delivered."""
        async with connection.cursor(row_factory=class_row(StoredCallback)) as cursor:
            await cursor.execute(_UNDELIVERED, {"limit": limit})
            return await cursor.fetchall()

    @statement
    async def count_undelivered(self, connection: Connection) -> int:
        """Return how many callbacks have not been delivered."""
        return int(await scalar(connection, _COUNT_UNDELIVERED, {}))

    @statement
    async def delivered(self, connection: Connection, callback_id: int) -> None:
        """Record that a callback was delivered, or that there is nobody left to deliver it to."""
        await connection.execute(_DELIVERED, {"id": callback_id})

    @statement
    async def find(self, connection: Connection, workspace_id: str, attempt: int) -> list[StoredCallback]:
        """Return an attempt's callbacks that have not been delivered, oldest first."""
        async with connection.cursor(row_factory=class_row(StoredCallback)) as cursor:
            await cursor.execute(_FIND, {"workspace_id": workspace_id, "attempt": attempt})
            return await cursor.fetchall()
