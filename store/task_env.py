"""The sealed environment of a task: stored with it, deleted when its release begins or it ends.

The registry holds no key: what is in here is opened by whoever uses it.
"""

from messages.sealed import SealedEnv
from store.database import Connection, Group, statement

_KEEP = "INSERT INTO task_env (task_id, key_id, sealed) VALUES (%(task_id)s, %(key_id)s, %(sealed)s)"
_FIND = "SELECT key_id, sealed FROM task_env WHERE task_id = %(task_id)s"
_FORGET = "DELETE FROM task_env WHERE task_id = %(task_id)s"


class TaskEnvStore(Group):
    """What was submitted as ``env``."""

    @statement
    async def find(self, connection: Connection, task_id: str) -> SealedEnv | None:
        """Return a task's sealed environment; None where none was submitted, or it is deleted already."""
        row = await (await connection.execute(_FIND, {"task_id": task_id})).fetchone()
        return SealedEnv(row["key_id"], row["sealed"]) if row else None


async def keep_env(connection: Connection, task_id: str, env: SealedEnv) -> None:
    """Store the environment of a task that the same transaction creates."""
    await connection.execute(_KEEP, {"task_id": task_id, "key_id": env.key_id, "sealed": env.data})


async def forget_env(connection: Connection, task_id: str) -> None:
    """Delete a task's environment, if there is one."""
    await connection.execute(_FORGET, {"task_id": task_id})
