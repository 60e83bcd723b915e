"""A port on which a real HTTP server answers what a test tells it to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Quiet:
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of a request."""


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1") -> Iterator[int]:
    """The port of a real server that answers each request with ``handler``, while the context lasts."""
    with ThreadingHTTPServer((address, 0), type("Quiet", (_Quiet, handler), {})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


class Port:
    """A real server that answers what it is told, in order; the last answer is repeated."""

    def __init__(self, number: int = 0) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.requests: list[tuple[str, str, str, Any]] = []
        port = self

        class Handler(_Quiet, BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers["Authorization"]
                port.requests.append((self.command, self.path, token, json.loads(body) if body else None))
                status, content = port.answers.pop(0) if len(port.answers) > 1 else port.answers[0]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = answer  # noqa: N815 (the base class wants these names)
            do_POST = answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", number), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
