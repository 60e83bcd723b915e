"""The way to PostgreSQL: a pool that opens lazily and recovers by itself, and short operations with a time limit."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, LiteralString, ParamSpec, TypeVar, cast

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from store.errors import MigrationError, RegistryUnavailable

_log = logging.getLogger(__name__)

Connection = AsyncConnection[DictRow]

CONNECTION_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "application_name": "taskrunner",
    "connect_timeout": 5,
    # A host that vanished without a word is noticed within half a minute, not after the two hours of the default.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

_SET_UP = """
    SELECT set_config('timezone', 'UTC', false),
           set_config('idle_in_transaction_session_timeout', '60s', false) -- a frozen client must not keep row locks
"""

_RECONNECT_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")
G = TypeVar("G", bound="Group")


class Database:
    """A pool of connections, and the rule for how operations use it: bounded in time, repeated where it is safe.

    ``timeout`` is in seconds, for one operation, waiting for a connection included.
    """

    def __init__(self, url: str, *, max_connections: int, timeout: float) -> None:
        self._timeout = timeout
        self._max_connections = max_connections
        self._connect_failure = ""
        self._operations: set[asyncio.Task[Any]] = set()
        self._pool = AsyncConnectionPool[Connection](
            url,
            connection_class=self._connection_class(),
            kwargs={**CONNECTION_OPTIONS, "row_factory": dict_row},
            min_size=min(1, max_connections),
            max_size=max_connections,
            open=False,
            configure=_configure,
            timeout=timeout,
            # A pool that goes on with its own backoff would sleep for minutes after an outage. It gives up instead,
            # and starts anew for whoever waits or comes.
            reconnect_timeout=_RECONNECT_SECONDS,
            reconnect_failed=self._reconnect_failed,
            name="registry",
        )

    def _connection_class(self) -> type[Connection]:
        database = self

        class Remembering(Connection):
            """A connection class that tells its pool's owner why connecting fails; the pool itself only logs it."""

            @classmethod
            async def connect(cls, conninfo: str = "", **kwargs: Any) -> Connection:  # type: ignore[override]
                try:
                    connection = cast(Connection, await AsyncConnection.connect(conninfo, **kwargs))
                except psycopg.Error as e:
                    database._connect_failure = str(e).strip()
                    raise
                database._connect_failure = ""
                return connection

        return Remembering

    async def _reconnect_failed(self, pool: AsyncConnectionPool[Connection]) -> None:
        if pool.get_stats().get("requests_waiting"):
            await pool.check()  # lets the pool grow again

    async def open(self) -> None:
        """Start connecting in the background."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close everything; operations under way fail with :class:`RegistryUnavailable`."""
        operations = list(self._operations)
        for operation in operations:
            operation.cancel()
        if operations:
            await asyncio.wait(operations, timeout=1)
        await self._pool.close(timeout=1)

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, atomic: bool, timeout: float | None = None) -> T:
        """Run ``work`` on a connection, in one transaction if ``atomic``, and return its result.

        ``work`` is called again where the connection turns out to have died before anything was asked of it (all of
        them have after PostgreSQL restarted); without ``atomic`` it must be a single statement that may be repeated.
        Raises :class:`RegistryUnavailable` after ``timeout`` seconds at most (default: the database's own).
        """
        limit = self._timeout if timeout is None else timeout
        # In a task of its own: psycopg answers a cancellation by asking the server to cancel too, which takes many
        # seconds where the server is frozen. The caller does not wait for that.
        operation = asyncio.create_task(self._run(work, atomic, limit))
        self._operations.add(operation)
        operation.add_done_callback(self._forget)
        try:
            await asyncio.wait({operation}, timeout=limit)
        finally:
            finished = operation.done()
            if not finished:
                operation.cancel()
        if not finished or operation.cancelled():
            raise RegistryUnavailable(f"PostgreSQL did not answer within {limit:g} s{self._because()}")
        return operation.result()

    def _forget(self, operation: asyncio.Task[Any]) -> None:
        self._operations.discard(operation)
        if not operation.cancelled():
            operation.exception()  # nobody is left to see it where the caller has gone

    async def _run(self, work: Callable[[Connection], Awaitable[T]], atomic: bool, limit: float) -> T:
        try:
            for _ in range(self._max_connections):
                async with self._pool.connection(timeout=limit) as connection:
                    begun = False
                    try:
                        if not atomic:
                            return await work(connection)
                        async with connection.transaction():
                            begun = True
                            return await work(connection)
                    except psycopg.OperationalError:
                        if begun or not connection.closed:
                            raise
                        _log.info("a connection to PostgreSQL was found dead; taking another")
            raise RegistryUnavailable("PostgreSQL closes every connection as soon as it is used")
        except PoolTimeout as e:
            raise RegistryUnavailable(f"no connection to PostgreSQL within {limit:g} s{self._because()}") from e
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject, psycopg.errors.UndefinedColumn) as e:
            raise MigrationError("the database lacks this release's schema; run: taskrunner migrate") from e
        except (psycopg.OperationalError, psycopg.InterfaceError) as e:
            raise RegistryUnavailable(f"PostgreSQL failed: {str(e).strip()}") from e

    def _because(self) -> str:
        return f" ({self._connect_failure})" if self._connect_failure else ""


async def _configure(connection: Connection) -> None:
    await connection.execute(_SET_UP)


class Group:
    """The base of the registry's groups: all they hold is the database."""

    def __init__(self, database: Database) -> None:
        self.database = database


def transaction(
    work: Callable[Concatenate[G, Connection, P], Awaitable[T]],
) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Let a method of a :class:`Group` take its connection from the pool, and run in one transaction."""

    @functools.wraps(work)
    async def call(self: G, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.run(lambda connection: work(self, connection, *args, **kwargs), atomic=True)

    return call


def statement(
    work: Callable[Concatenate[G, Connection, P], Awaitable[T]],
) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Do the same without a transaction, for a method that is a single statement and may be repeated."""

    @functools.wraps(work)
    async def call(self: G, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.run(lambda connection: work(self, connection, *args, **kwargs), atomic=False)

    return call


async def scalar(connection: Connection, query: LiteralString, parameters: dict[str, Any]) -> Any:
    """Return the first column of the first row, or None where there is no row."""
    row = await (await connection.execute(query, parameters)).fetchone()
    return next(iter(row.values())) if row else None
