"""Further addresses at which workspaces reach the embedded stack's API: for containers, which have another loopback."""

import asyncio
import contextlib
import contextvars
import json
import logging
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from api import server
from api.dependencies import ApiDependencies
from cli.home import DOORS_FILE, read_doors, replace_file

_log = logging.getLogger(__name__)


class CallbackDoors:
    """The callback routes, and nothing else, on addresses of this machine; an async context manager.

    Which addresses is known only when the first container is made, so they are opened then. ``doors.json`` in ``home``
    remembers the ports: containers that outlive a stack report to the next one there.
    """

    def __init__(self, given: ApiDependencies, home: Path) -> None:
        self._given = given
        self._file = home / DOORS_FILE
        self._ports: dict[str, int] = {}
        self._lock = asyncio.Lock()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open what the stack before had open, as far as it can be had."""
        for address in self._remembered():
            with contextlib.suppress(OSError):  # Docker's bridge is not there (yet)
                await self.open(address)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them all."""
        await self._open.aclose()

    async def open(self, address: str) -> int:
        """Serve on ``address`` and return the port; what is open already is used. Raises ``OSError``."""
        # In a context of its own: the server outlives whoever asks for it first.
        opening = asyncio.get_running_loop().create_task(self._ensure(address), context=contextvars.Context())
        return await asyncio.shield(opening)

    async def _ensure(self, address: str) -> int:
        async with self._lock:
            if address not in self._ports:
                bound = _bind(address, self._remembered().get(address, 0))
                running = await self._open.enter_async_context(
                    server.running(self._given, sock=bound, callbacks_only=True)
                )
                self._ports[address] = int(bound.getsockname()[1])
                running.task.add_done_callback(lambda _: self._ports.pop(address, None))
                replace_file(self._file, json.dumps({**self._remembered(), address: self._ports[address]}))
                _log.info("containers reach the API at %s", running.url)
            return self._ports[address]

    def _remembered(self) -> dict[str, int]:
        return read_doors(self._file.parent)


def _bind(address: str, port: int) -> socket.socket:
    if port:
        with contextlib.suppress(OSError):
            return server.bind(address, port)
    return server.bind(address, 0)
