"""Waking whoever waits for news of a task: PostgreSQL notifies, nobody polls."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection

from store.database import CONNECTION_OPTIONS

CHANNEL = "taskrunner"
_LISTEN = "LISTEN taskrunner"
_RETRY_SECONDS = (0.1, 5.0)

_log = logging.getLogger(__name__)


class Watch:
    """Wakes its holder when something of one task may have changed.

    Look first, then wait, then look again: what happens between a look and a wait wakes the wait. It also wakes for
    nothing, as when the listening connection was made anew, because then something may have been missed.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Return as soon as something has changed since the last wait (or since the watch began)."""
        await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Wake the holder, now or at its next wait."""
        self._changed.set()


class Changes:
    """The one listening connection of a registry, shared by all watches, made at the first one and kept alive."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watches: defaultdict[str, set[Watch]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, task_id: str) -> AsyncGenerator[Watch]:
        """Watch a task, or what :mod:`store.callbacks` stores (``STORED_CALLBACKS``), while the context lasts.

        Works while PostgreSQL is away, and wakes on its return.
        """
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="registry-changes")
        watch = Watch()
        self._watches[task_id].add(watch)
        try:
            yield watch
        finally:
            self._watches[task_id].discard(watch)
            if not self._watches[task_id]:
                del self._watches[task_id]

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})
            self._listener = None

    async def _listen(self) -> None:
        shortest, longest = _RETRY_SECONDS
        delay = shortest
        while True:
            try:
                async with await AsyncConnection.connect(self._url, **CONNECTION_OPTIONS) as connection:
                    await connection.execute(_LISTEN)
                    delay = shortest
                    self._wake_all()
                    await self._follow(connection)
            except (psycopg.Error, OSError) as e:
                _log.warning("lost the connection that listens for changes, making it anew: %s", str(e).strip())
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)

    async def _follow(self, connection: AsyncConnection) -> None:
        """Wake watches until the connection is lost, which is raised.

        This reads the socket when the event loop says that there is something to read; psycopg's own ``notifies()``
        wakes up ten times a second to look.
        """
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[None] = loop.create_future()
        pgconn = connection.pgconn
        socket = pgconn.socket

        def read() -> None:
            try:
                pgconn.consume_input()
                while notification := pgconn.notifies():
                    for watch in self._watches.get(notification.extra.decode(), ()):
                        watch.wake()
            except psycopg.Error as e:
                loop.remove_reader(socket)
                if not lost.done():
                    lost.set_exception(e)

        loop.add_reader(socket, read)
        try:
            await lost
        finally:
            loop.remove_reader(socket)

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()
