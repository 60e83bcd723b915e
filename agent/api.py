"""The way to the API: one kept-alive connection a thread, and the callback token."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

from agent import __version__
from agent.files import log, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

REQUEST_SECONDS = 10.0
_MAX_ANSWER_BYTES = 64 * 1024
_SENDABLE = re.compile(r"[\x21-\x7e]{1,16384}")


class Unreachable(Exception):
    """No answer came; the text says why."""


class Answer(NamedTuple):
    """What the API answered. ``body`` is empty where it was no JSON object; ``retry_after`` is in seconds."""

    status: int
    body: dict[str, Any] = {}  # noqa: RUF012 - never changed
    retry_after: float | None = None


class Connection:
    """Posts JSON to the API, for one thread. Follows no redirect and asks no proxy, so the token goes nowhere else."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host = parts.hostname or ""
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, token: str, *, timeout: float = REQUEST_SECONDS) -> Answer:
        """Send one request; ``timeout`` (seconds) limits each wait for the network.

        Raises :class:`Unreachable`. The API takes repeats of every callback, so one lost on a connection that had
        gone stale meanwhile is sent again at once.
        """
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json, application/problem+json",
            "User-Agent": f"taskrunner-agent/{__version__}",
        }
        while True:
            fresh = self._connection is None
            connection = self._connection or self._kind(self._host, self._port, timeout=timeout)
            self._connection = connection
            try:
                connection.timeout = timeout
                if connection.sock is not None:  # pyright: ignore[reportUnnecessaryComparison] - None until connected
                    connection.sock.settimeout(timeout)
                connection.request("POST", self._prefix + path, body, headers)
                response = connection.getresponse()
                data = response.read(_MAX_ANSWER_BYTES)
                if not response.isclosed():
                    self.close()
                return Answer(response.status, _json_object(data), _seconds(response.getheader("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError) as e:
                self.close()
                if fresh or isinstance(e, socket.timeout):
                    raise Unreachable(f"{type(e).__name__}: {e}") from e

    def close(self) -> None:
        """Forget the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Token:
    """The callback token: the configured one, or the newer one that a heartbeat brought and ``path`` keeps."""

    def __init__(self, configured: str, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._text = configured
        try:
            stored = path.read_text("ascii")
        except (OSError, ValueError):
            return
        if _SENDABLE.fullmatch(stored) and _age(stored) > _age(configured):
            self._text = stored

    @property
    def text(self) -> str:
        """The token to send now."""
        with self._lock:
            return self._text

    def adopt(self, text: object) -> bool:
        """Use and keep a token that the API sent; what cannot be one is ignored. Returns whether it is a new one."""
        if not isinstance(text, str) or not _SENDABLE.fullmatch(text):
            return False
        with self._lock:
            if text == self._text:
                return False
            self._text = text
            try:
                write_atomically(self._path, text.encode("ascii"), durable=True)
            except OSError as e:
                log(f"cannot keep the refreshed callback token: {e.strerror}")
        return True

    @property
    def expired(self) -> bool:
        """Whether the token says itself that it is dead. One that says nothing lives for ever."""
        expires = _claims(self.text).get("exp")
        return isinstance(expires, (int, float)) and expires <= time.time()


def _claims(token: str) -> dict[str, Any]:
    """Read a JWT's claims without verifying them: they only tell when to give up."""
    try:
        payload = token.split(".")[1]
        return _json_object(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error):
        return {}


def _age(token: str) -> tuple[float, float]:
    """Return what orders tokens: the attempt, then the expiry."""
    claims = _claims(token)
    attempt, expires = claims.get("att"), claims.get("exp")
    return (
        attempt if isinstance(attempt, (int, float)) else 0,
        expires if isinstance(expires, (int, float)) else 0,
    )


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _seconds(header: str | None) -> float | None:
    return float(header) if header is not None and re.fullmatch(r"[0-9]{1,9}", header.strip()) else None
