"""Serving the API over a socket, alone or within a larger asyncio program."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.app import create_app
from api.dependencies import ApiDependencies, Services

BACKLOG = 2048
GRACE_SECONDS = 5
"""How long requests under way may take once the server has been told to stop."""


class _Server(uvicorn.Server):
    """Leaves signals to the program that it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Protocol(H11Protocol):
    """Writes no access log, however the program's logging is set up: paths may hold single-use tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that nobody else can take; port 0 takes a free one.

    It listens: connections are queued from here on. Raises ``OSError`` where the address cannot be had.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)  # two sockets may be bound to one address as long as neither listens
    except OSError:
        bound.close()
        raise
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL at which a bound socket is served."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class RunningServer:
    """A server that answers. ``task`` ends when it does."""

    def __init__(self, url: str, task: "asyncio.Task[None]") -> None:
        self.url = url
        self.task = task


@contextlib.asynccontextmanager
async def running(
    given: ApiDependencies,
    host: str = "127.0.0.1",
    port: int = 8070,
    *,
    sock: socket.socket | None = None,
    callbacks_only: bool = False,
) -> AsyncGenerator[RunningServer]:
    """Serve the API for as long as the context lasts; then end streams and finish what is under way.

    ``sock`` is a bound socket to use in place of host and port, and is closed at the end. With ``callbacks_only`` no
    other route is served. Raises ``OSError`` where the address cannot be had.
    """
    bound = sock or bind(host, port)
    url = url_of(bound)
    loopback = ipaddress.ip_address(bound.getsockname()[0]).is_loopback
    app = create_app(given, loopback=loopback, callbacks_only=callbacks_only)
    services: Services = app.state.services
    server = _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            backlog=BACKLOG,
            access_log=False,
            log_config=None,  # logging is the program's to set up
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    # Connections are queued by the kernel from here on, so nobody who learns the URL is refused.
    bound.listen(BACKLOG)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="api server")
    try:
        yield RunningServer(url, task)
    finally:
        services.closing.set()
        server.should_exit = True
        await asyncio.shield(asyncio.gather(task, return_exceptions=True))
        bound.close()
