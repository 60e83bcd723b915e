"""Requests by the standard library's client, where httpx would take longer to load than the answer takes to come.

For plain HTTP to this machine, so there are no certificates and no proxy.
"""

import contextlib
import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from messages.urls import is_loopback

_SEND_SECONDS = 2.0
"""Whoever sends is deaf to a Ctrl-C meanwhile."""


class NoAnswer(Exception):
    """Nothing answers, or something that does not speak HTTP."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Posted:
    """A request that was sent, and whose answer is yet to be read."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def answer(self) -> Answer | None:
        """Wait for the answer and return it; None where none comes: whether the request was taken is not known then."""
        try:
            return _read(self._connection)
        except (OSError, HTTPException, ValueError):
            return None


def is_local(url: str) -> bool:
    """Tell whether requests to ``url`` can be made here."""
    return urlsplit(url).scheme == "http" and is_loopback(url)


def get(url: str, *, seconds: float) -> Answer:
    """Return what is answered at ``url``, each step of it within ``seconds``; raise :class:`NoAnswer`."""
    try:
        connection = _connect(url, seconds)
        with contextlib.closing(connection):
            connection.request("GET", urlsplit(url).path)
            return _read(connection)
    except (OSError, HTTPException, ValueError) as e:
        raise NoAnswer(str(e) or type(e).__name__) from e


def post(url: str, body: Mapping[str, Any], token: str | None, *, seconds: float) -> Posted | None:
    """Send JSON without waiting for the answer, which may take ``seconds``.

    None where it could not be sent at once, or not from here.
    """
    if not is_local(url):
        return None
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = _connect(url, _SEND_SECONDS)
    try:
        connection.request("POST", urlsplit(url).path, json.dumps(body).encode(), headers)
        connection.sock.settimeout(seconds)
    except (OSError, HTTPException, ValueError):
        connection.close()
        return None
    return Posted(connection)


def _connect(url: str, seconds: float) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)


def _read(connection: HTTPConnection) -> Answer:
    with contextlib.closing(connection), connection.getresponse() as response:
        return Answer(response.status, dict(response.headers), response.read())
