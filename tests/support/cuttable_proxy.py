"""A TCP proxy before PostgreSQL that can be absent, and can stop forwarding without closing anything."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class CuttableProxy:
    """Forwards to the database at ``url``; :attr:`url` is the way through it."""

    def __init__(self, url: str) -> None:
        target = conninfo_to_dict(url)
        self._socket = f"{target['host']}/.s.PGSQL.{target.get('port') or 5432}"
        self._target = url
        self._port = 0
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return make_conninfo(self._target, host="127.0.0.1", port=self._port, sslmode="disable", gssencmode="disable")

    async def open(self) -> None:
        """Accept connections, always on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close every connection and refuse new ones."""
        if self._server:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def freeze(self) -> None:
        """Accept and keep connections, but forward nothing any more."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            upstream, downstream = await asyncio.open_unix_connection(self._socket)
            try:
                copies = [
                    asyncio.create_task(self._copy(reader, downstream)),
                    asyncio.create_task(self._copy(upstream, writer)),
                ]
                try:
                    await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for copy in copies:
                        copy.cancel()
                    await asyncio.wait(copies)
            finally:
                downstream.close()
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def cuttable_proxy(url: str) -> AsyncGenerator[CuttableProxy]:
    """A proxy that is open."""
    proxy = CuttableProxy(url)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.thaw()
        await proxy.cut()
