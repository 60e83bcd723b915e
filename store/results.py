"""What tasks changed: where it is kept, the patch, and the bundle."""

from typing import Any

from messages.statuses import EventKind
from messages.tasks import SavedResult
from store.database import Connection, Group
from store.errors import RegistryError
from store.transitions import lock_task, record_event
from store.values import message_jsonb

_SAVE = """
    INSERT INTO results (task_id, result, patch, bundle) VALUES (%(task_id)s, %(result)s, %(patch)s, %(bundle)s)
    ON CONFLICT DO NOTHING
"""
_PATCH = "SELECT patch FROM results WHERE task_id = %(task_id)s"
_BUNDLE = "SELECT bundle FROM results WHERE task_id = %(task_id)s"

_SECONDS = 60.0
"""Time limit of these operations: a bundle may have 50 MB."""


class ResultStore(Group):
    """The saved results. Every call may take a minute."""

    async def save(self, task_id: str, result: SavedResult, *, patch: bytes | None, bundle: bytes | None) -> bool:
        """Keep a task's result; the first one stands, and only its call returns True.

        Raises :class:`RegistryError` where the task was never recorded.
        """

        async def save(connection: Connection) -> bool:
            if await lock_task(connection, task_id) is None:
                raise RegistryError(f"task {task_id} is not recorded")
            parameters = {"task_id": task_id, "result": message_jsonb(result), "patch": patch, "bundle": bundle}
            saved = await connection.execute(_SAVE, parameters)
            if saved.rowcount:
                detail = result.model_dump(mode="json")
                await record_event(connection, EventKind.RESULT_SAVED, task_id=task_id, detail=detail)
            return bool(saved.rowcount)

        return await self.database.run(save, atomic=True, timeout=_SECONDS)

    async def patch(self, task_id: str) -> bytes | None:
        """Return a task's change as a patch, or None where none is kept."""
        return await self._read(_PATCH, task_id)

    async def bundle(self, task_id: str) -> bytes | None:
        """Return a task's change as a git bundle, or None where none is kept."""
        return await self._read(_BUNDLE, task_id)

    async def _read(self, query: Any, task_id: str) -> bytes | None:
        async def read(connection: Connection) -> bytes | None:
            async with connection.cursor(binary=True) as cursor:  # as text, each byte would travel as two
                await cursor.execute(query, {"task_id": task_id})
                row = await cursor.fetchone()
                return next(iter(row.values())) if row else None

        return await self.database.run(read, atomic=False, timeout=_SECONDS)
