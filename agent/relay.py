"""Requests for the harness server, passed on as they come: ``/v1/...`` of the agent is ``/v1/...`` of the harness.

So the harness needs no port that can be reached from outside, and whoever talks to it has shown the agent's token.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Generator, NamedTuple

from agent.harness import HOST, Harness

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

PREFIX = "/v1/"
_PASSED_ON = ("Content-Type", "Accept", "Last-Event-ID")
_PASSED_BACK = ("Content-Type", "Retry-After", "Allow")
_CONNECT_SECONDS = 5.0
_PIECE_BYTES = 64 * 1024


class Away(Exception):
    """The harness does not answer; the text says why."""


class Request(NamedTuple):
    """One request as it came."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str]


def read_request(handler: BaseHTTPRequestHandler, body: bytes) -> Request:
    """Return what of a request is passed on."""
    headers = {name: value for name in _PASSED_ON if (value := handler.headers.get(name)) is not None}
    return Request(handler.command, handler.path, body, headers)


def relay(harness: Harness, request: Request, handler: BaseHTTPRequestHandler) -> None:
    """Answer through ``handler`` what the harness answers, piece by piece as it comes.

    An answer that breaks off, because the harness has ended, is broken off too. Raises :class:`Away` where none began.
    """
    port = harness.port
    if port is None:
        raise Away(harness.trouble)
    headers = dict(request.headers)
    if harness.token:
        headers["Authorization"] = f"Bearer {harness.token}"
    connection = http.client.HTTPConnection(HOST, port, timeout=_CONNECT_SECONDS)
    with contextlib.closing(connection), contextlib.ExitStack() as meanwhile:
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a stream of events may be silent for long
            meanwhile.enter_context(_ended_with(handler.connection, connection.sock))
            connection.request(request.method, request.target, request.body or None, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            raise Away(harness.trouble or f"the harness does not answer: {e or type(e).__name__}") from e
        _pass_back(response, handler)


@contextlib.contextmanager
def _ended_with(reader: socket.socket, source: socket.socket) -> Generator[None, None, None]:
    """End the connection to the harness when the reader leaves: whoever waits for its answer would not notice."""
    done, finish = os.pipe()
    poller = select.poll()
    poller.register(reader, select.POLLRDHUP | select.POLLHUP)
    poller.register(done, select.POLLIN)

    def watch() -> None:
        if done not in {descriptor for descriptor, _ in poller.poll()}:
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="relay", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.write(finish, b".")
        watcher.join()
        os.close(done)
        os.close(finish)


def _pass_back(response: http.client.HTTPResponse, handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True  # one way to end an answer of any length, and to break one off
    handler.send_response(response.status)
    for name in _PASSED_BACK:
        if (value := response.getheader(name)) is not None:
            handler.send_header(name, value)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.flush()
    try:
        while piece := response.read1(_PIECE_BYTES):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
    except (OSError, http.client.HTTPException, ValueError):
        return  # without the last chunk: whoever reads knows that it is not whole
    handler.wfile.write(b"0\r\n\r\n")
    handler.wfile.flush()
