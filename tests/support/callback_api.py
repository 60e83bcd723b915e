"""The API as the workspace agent sees it: a real HTTP server that records callbacks and answers as it is told."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple, cast


class Callback(NamedTuple):
    """One request: what follows the workspace's id in its path, its body, its bearer token, and its size."""

    kind: str
    body: dict[str, Any]
    token: str
    size: int
    workspace_id: str


class Reply(NamedTuple):
    """An answer; status 0 loses it on the way."""

    status: int = 200
    body: Mapping[str, Any] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})


Answer = Callable[[Callback], Reply]


class CallbackApi:
    """Replace ``answer`` at any time. ``received`` holds every request, ``accepted`` those answered with 2xx."""

    def __init__(self, port: int = 0, *, host: str = "127.0.0.1") -> None:
        self.received: list[Callback] = []
        self.accepted: list[Callback] = []
        self.connections: set[tuple[str, int]] = set()
        self.answer: Answer = lambda _: Reply()
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._host = host
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> "CallbackApi":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 10

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                parts = self.path.split("/", 4)
                token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
                callback = Callback(parts[4], json.loads(data), token, len(data), parts[3])
                reply = api.answer(callback)
                with api._changed:
                    api.connections.add(self.client_address)
                    api.received.append(callback)
                    if 200 <= reply.status < 300:
                        api.accepted.append(callback)
                    api._changed.notify_all()
                if reply.status == 0:  # the answer is lost on the way
                    self.close_connection = True
                    return
                body = json.dumps(dict(reply.body)).encode()
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                api._open.add(request)
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    api._open.discard(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server((self._host, self._port), Handler)
        self._port = cast("tuple[str, int]", self._server.server_address)[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away: connections are refused until :meth:`start`, which takes the same port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, condition: Callable[[], Any], timeout: float = 15) -> None:
        """Wait until something received makes ``condition`` true."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                kinds = [callback.kind for callback in self.received]
                raise AssertionError(f"not within {timeout} s; received {kinds}")

    def kinds(self, *, heartbeats: bool = False) -> list[str]:
        """The kinds of what was accepted, in order."""
        return [c.kind for c in self.accepted if heartbeats or c.kind != "heartbeat"]

    def count(self, kind: str) -> int:
        return sum(c.kind == kind for c in self.accepted)

    def find(self, kind: str) -> dict[str, Any]:
        """The body of the first accepted callback of that kind."""
        return next(c.body for c in self.accepted if c.kind == kind)

    def output(self, session_id: str, *, repeats: bool = False) -> str:
        """The session's output, put together from its batches; fails on a gap, and on an overlap unless ``repeats``."""
        data = b""
        for callback in list(self.accepted):
            if callback.kind == f"sessions/{session_id}/output":
                offset, batch = callback.body["offset"], "".join(callback.body["chunks"]).encode()
                assert offset == len(data) or (repeats and data[offset:].startswith(batch)), (offset, len(data))
                data = data[:offset] + batch
        return data.decode()
