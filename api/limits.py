"""What a request may weigh: the body's size, counted while it comes, its time, and how deep its JSON goes."""

import asyncio
import ipaddress
import re
from collections.abc import Collection
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem, invalid_body
from messages.callbacks import MAX_BODY_BYTES, MAX_OUTPUT_BODY_BYTES

MAX_TASK_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 30
"""How long a body may take to arrive."""

_OUTPUT_PATH = re.compile(r"/api/workspaces/[^/]*/sessions/[^/]*/output")
_CALLBACK_PATH = re.compile(r"/api/(workspaces|callbacks)/.*")

M = TypeVar("M", bound=BaseModel)


def body_limit(path: str) -> int:
    """Return how many bytes a body sent to ``path`` may have."""
    if _OUTPUT_PATH.fullmatch(path):
        return MAX_OUTPUT_BODY_BYTES
    return MAX_BODY_BYTES if _CALLBACK_PATH.fullmatch(path) else MAX_TASK_BODY_BYTES


class BodyLimit:
    """ASGI middleware: a body over its path's limit is refused (413) as soon as that is known.

    Nothing is read for a request whose route does not read it, so an unauthorised one costs no memory.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = body_limit(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        announced = int(declared) if declared.isascii() and declared.isdecimal() else 0
        received = 0

        async def counted() -> Message:
            nonlocal received
            if announced > limit:
                raise _too_large(limit)
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"the body is larger than {limit} bytes, which is the most that is taken here")


class HostCheck:
    """ASGI middleware: the ``Host`` header has to be an address, ``localhost``, or one of ``names``.

    A web page that has its own name resolve to 127.0.0.1 (DNS rebinding) cannot choose the header: its requests
    carry that name.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and not self._is_ours(Headers(scope=scope).get("host", "")):
            problem = Problem(
                421,
                "wrong-host",
                "this API listens on loopback and does not answer to the name in the Host header; use its address, or"
                " start it with TASKRUNNER_PUBLIC_URL set to the URL that holds the name",
            )
            await problem.response(Request(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, header: str) -> bool:
        host = re.sub(r":\d*$", "", header).lower().rstrip(".")
        if host in self._names:
            return True
        try:
            ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


async def read_body(request: Request, model: type[M], *, what: str, empty_is_fine: bool = False) -> M:
    """Read, parse and validate a request's body; raise the 4xx that says what is wrong with it.

    Strict JSON: no NaN, no lone surrogates, no bytes that are not UTF-8, nothing nested deeper than 200.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.body()
    except TimeoutError:
        raise Problem(408, "slow-body", f"the body did not arrive within {BODY_SECONDS} s; send it again") from None
    if not raw and empty_is_fine:
        raw = b"{}"
    try:
        value: object = from_json(raw, allow_inf_nan=False, cache_strings="none")
    except ValueError as e:
        raise Problem(400, "invalid-json", f"the {what} is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise Problem(400, "invalid-body", f"the {what} has to be a JSON object")
    try:
        return model.model_validate(cast(dict[str, Any], value))
    except ValidationError as e:
        raise invalid_body(e, what) from None
    except (OverflowError, RecursionError):
        raise Problem(400, "invalid-body", f"the {what} holds a number that is too large") from None
