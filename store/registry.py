"""The registry: one object, whose groups share one pool."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from store.callbacks import CallbackStore
from store.changes import Changes
from store.conninfo import check_database_url
from store.database import Database
from store.results import ResultStore
from store.sessions import SessionStore
from store.task_env import TaskEnvStore
from store.tasks import TaskStore
from store.tokens import TokenStore
from store.workspaces import WorkspaceStore


class Registry:
    """What is recorded of tasks, workspaces and sessions, by group.

    Every method is one short transaction that may be repeated. A transition that is not legal changes nothing, leaves
    no event and returns False; a legal one leaves exactly one event. Every method raises
    :class:`~store.errors.RegistryUnavailable` where PostgreSQL does not answer in time.
    """

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self.tasks = TaskStore(database)
        self.workspaces = WorkspaceStore(database)
        self.sessions = SessionStore(database)
        self.callbacks = CallbackStore(database)
        self.results = ResultStore(database)
        self.task_env = TaskEnvStore(database)
        self.tokens = TokenStore(database)
        self.changes = changes

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, *, max_connections: int = 10, timeout: float = 5.0) -> AsyncGenerator["Registry"]:
        """Open the registry in the database at ``url`` (libpq's form) for as long as the context lasts.

        Works while PostgreSQL is away: then each call raises ``RegistryUnavailable`` after ``timeout`` seconds at
        most, until it is back. Besides the pool, one connection is used from the first watch on. Raises
        ``InvalidDatabaseUrl`` at once for what is no address.
        """
        check_database_url(url)
        database = Database(url, max_connections=max_connections, timeout=timeout)
        changes = Changes(url)
        await database.open()
        try:
            yield cls(database, changes)
        finally:
            await changes.close()
            await database.close()

    async def ping(self) -> None:
        """Return if PostgreSQL answers and has this release's schema; raise ``RegistryError`` if not."""
        await self.tasks.list(limit=1)
