"""The agent's own HTTP: health and sessions, for whoever holds the attempt's token."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

from agent.checkout import StepFailed
from agent.config import ID, is_argument, is_env
from agent.files import log
from agent.relay import PREFIX, Away, read_request, relay
from agent.session import Spec
from agent.sessions import NotRecorded, OtherSpec, Sessions

if TYPE_CHECKING:
    from typing import Callable

    from agent.harness import Harness

    Health = Callable[[], "tuple[int, dict[str, Any]]"]

MAX_BODY_BYTES = 1024 * 1024
MAX_WAIT_SECONDS = 300.0
MAX_GRACE_SECONDS = 300.0
DEFAULT_GRACE_SECONDS = 10.0
_READ_SECONDS = 30
_DRAINED_BYTES = 16 * 1024 * 1024
_SESSION_PATH = re.compile(r"/sessions/([^/]+)(?:/(cancel|messages))?")


class Problem(Exception):
    """An error to answer with, as RFC 9457 says."""

    def __init__(self, status: int, title: str, detail: str = "", **headers: str) -> None:
        super().__init__(title)
        self.status = status
        self.body = {"type": "about:blank", "title": title, "status": status, "detail": detail or title}
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Application:
    """What the agent answers, apart from how it travels."""

    def __init__(self, token_sha256: str, health: Health, sessions: Sessions, harness: Harness | None = None) -> None:
        self._token_sha256 = token_sha256.encode()
        self._health = health
        self._sessions = sessions
        self.harness = harness

    def authorize(self, authorization: str) -> None:
        """Raise :class:`Problem` unless the header shows the attempt's token."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest().encode()
        # Compared even where the scheme is wrong, so that the time tells nothing.
        if not hmac.compare_digest(given, self._token_sha256) or scheme.lower() != "bearer":
            raise Problem(
                401, "Unauthorized", "The agent's bearer token is missing or wrong.", WWW_Authenticate="Bearer"
            )

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON to answer with; raise :class:`Problem`. May take as long as ``wait`` says."""
        parts = urlsplit(target)
        if parts.path == "/healthz":
            _allow(method, "GET")
            return self._health()
        if parts.path == "/harness/restart" and self.harness is not None:
            _allow(method, "POST")
            return self._restart(self.harness)
        if parts.path == "/sessions":
            _allow(method, "POST")
            return self._create(_json_object(body))
        match = _SESSION_PATH.fullmatch(parts.path)
        if match is None:
            raise Problem(404, "Not found", "There is no such path.")
        session_id, action = match.groups()
        _allow(method, "GET" if action is None else "POST")
        session = self._sessions.get(session_id)
        if session is None:
            raise Problem(404, "Unknown session", f"There is no session {session_id[:40]!r} in this workspace.")
        if action == "messages":
            raise Problem(404, "Not available", "A running session takes no messages in this release.")
        if action == "cancel":
            grace = _number(_json_object(body or b"{}"), "grace_seconds", DEFAULT_GRACE_SECONDS, minimum=0.0)
            session.stop(min(grace, MAX_GRACE_SECONDS))
        elif (wait := parse_qs(parts.query).get("wait")) is not None:
            session.settled.wait(_wait_seconds(wait[-1]))
        return 200, session.view()

    def _restart(self, harness: Harness) -> tuple[int, dict[str, Any]]:
        try:
            harness.restart()
        except StepFailed as e:
            raise Problem(503, "Not restarted", str(e)) from e
        return 200, {"restarted": True}

    def _create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session_id, spec = _read_spec(body)
        status, health = self._health()
        if status != 200 and self._sessions.get(session_id) is None:
            detail = health.get("error") or f"it is {health['status']}"
            raise Problem(503, "Not ready", f"The workspace takes no session: {detail}.", Retry_After="1")
        try:
            session, created = self._sessions.create(session_id, spec)
        except OtherSpec:
            raise Problem(409, "Another session", f"Session {session_id!r} exists and runs something else.") from None
        except NotRecorded as e:
            raise Problem(503, "Not started", str(e), Retry_After="1") from e
        return (201 if created else 200), session.view()


class Server(ThreadingHTTPServer):
    """Serves the application on a socket that listens already, a thread a connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, application: Application) -> None:
        listener.set_inheritable(False)
        listener.setblocking(True)
        self.address_family = listener.family
        self.application = application
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the one that the base class made
        self.socket = listener
        self.server_address = listener.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log what ended a connection; a peer that has gone is nothing to log."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, socket.timeout)):
            log(f"http: {type(error).__name__}: {error}")


def listen(address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens on ``address``. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family, backlog=128)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "taskrunner-agent"
    sys_version = ""
    timeout = _READ_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # head and body leave in one packet

    def _serve(self) -> None:
        try:
            body = self._read_body()
            application = cast("Server", self.server).application
            application.authorize(self.headers.get("Authorization") or "")
            if application.harness is not None and self.path.startswith(PREFIX):
                try:
                    relay(application.harness, read_request(self, body), self)
                except Away as e:
                    raise Problem(503, "Harness away", str(e)) from e
                return
            status, answer = application.answer(self.command, self.path, body)
            self._send(status, answer, "application/json", {})
        except Problem as e:
            self._send(e.status, e.body, "application/problem+json", e.headers)
        except (ConnectionError, socket.timeout):
            raise
        except Exception as e:  # a defect of ours is answered, not a silent end of the connection
            log(f"http: {self.command} {self.path.partition('?')[0]}: {type(e).__name__}: {e}")
            self._send(500, Problem(500, "Internal error").body, "application/problem+json", {})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - the base class's names

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") is not None:
            self.close_connection = True
            raise Problem(411, "Length required", "Send the body with a Content-Length.")
        text = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self.close_connection = True
            raise Problem(400, "Bad request", "Content-Length is not a number.")
        length = int(text)
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            raise Problem(413, "Body too large", f"A body may have {MAX_BODY_BYTES} bytes at most.")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError
        return body

    def _send(self, status: int, body: dict[str, Any], content_type: str, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()
        if self.close_connection:
            self._drain()

    def _drain(self) -> None:
        """Read on a little: closing with unread data makes the kernel take back the answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            left = _DRAINED_BYTES
            while left > 0 and (data := self.connection.recv(65536)):
                left -= len(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses by itself (a malformed request line, an unknown method)."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"  # the default is 0.9, whose answers have no head
        if not hasattr(self, "command") or self.command is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.command = ""
        title = self.responses.get(code, ("Error", ""))[0] if message is None else message  # pyright: ignore
        self._send(code, Problem(code, title, explain or "").body, "application/problem+json", {})

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: what matters is logged where it happens."""


class _Fields(NamedTuple):
    session_id: str
    spec: Spec


def _allow(method: str, allowed: str) -> None:
    if method != allowed:
        raise Problem(405, "Method not allowed", f"Use {allowed}.", Allow=allowed)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Problem(400, "Bad request", "The body is not valid JSON.") from e
    if not isinstance(value, dict):
        raise Problem(400, "Bad request", "The body is not a JSON object.")
    return cast("dict[str, Any]", value)


def _read_spec(body: dict[str, Any]) -> _Fields:
    session_id, command, env = body.get("session_id"), body.get("command"), body.get("env")
    if env is None:
        env = cast("dict[str, str]", {})
    if not isinstance(session_id, str) or ID.fullmatch(session_id) is None:
        raise Problem(400, "Bad request", f"session_id must match {ID.pattern}.")
    if not isinstance(command, list):
        raise Problem(400, "Bad request", "command must be a list of texts.")
    argv = cast("list[Any]", command)
    if not argv or not all(is_argument(part) for part in argv) or not argv[0]:
        raise Problem(400, "Bad request", "command must be a list of texts without NULs, the first not empty.")
    if not is_env(env):
        raise Problem(400, "Bad request", "env must map names to texts.")
    if_missing = body.get("if_missing", "")
    if not isinstance(if_missing, str):
        raise Problem(400, "Bad request", "if_missing must be a text.")
    return _Fields(session_id, Spec(tuple(cast("list[str]", argv)), cast("dict[str, str]", env), if_missing))


def _number(body: dict[str, Any], key: str, default: float, *, minimum: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value <= 10_000_000:
        raise Problem(400, "Bad request", f"{key} must be a number of seconds.")
    return float(value)


def _wait_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Problem(400, "Bad request", "wait must be a number of seconds.")
    return min(seconds, MAX_WAIT_SECONDS)
