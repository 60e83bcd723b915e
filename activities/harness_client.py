"""The client side of a harness server's HTTP, and of any image that answers ``GET /healthz``."""

import asyncio
import json

import httpx

from activities.errors import WorkspaceUnreachable

_MAX_HEALTH_BYTES = 64 * 1024
_TEXT_CHARS = 200


class HarnessClient:
    """One server. ``url`` comes from its backend."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    async def health(self, *, timeout_seconds: float) -> None:
        """Return where ``GET /healthz`` says that the application is there; raise :class:`WorkspaceUnreachable`.

        Only 200 says so, and a body that is a JSON object with a ``status`` has to say ``ok`` there. Other bodies are
        the image's own business. An open port, a redirect and any other status are an application that is not there.
        """
        url = f"{self._url}/healthz"
        body = b""
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._client.stream("GET", url, timeout=timeout_seconds, follow_redirects=False) as response,
            ):
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _MAX_HEALTH_BYTES:
                        break
        except TimeoutError as e:
            raise WorkspaceUnreachable(f"{url} did not answer within {timeout_seconds:g} s") from e
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise WorkspaceUnreachable(f"{url} does not answer: {e or type(e).__name__}") from e
        if response.status_code != 200 or _status(body) not in {None, "ok"}:
            said = body.decode("utf-8", "replace").strip()[:_TEXT_CHARS]
            raise WorkspaceUnreachable(f"{url} answered {response.status_code} {said}".strip())


def _status(body: bytes) -> object:
    """Return what a JSON object says is its status; None where it is none, or says nothing."""
    try:
        document = json.loads(body)
        return document.get("status")
    except (ValueError, AttributeError, RecursionError):
        return None
