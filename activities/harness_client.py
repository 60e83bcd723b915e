"""The client side of a harness server's HTTP, and of any image that answers ``GET /healthz``.

The shapes are those of go-agent-harness (github.com/dennisonbertram/go-agent-harness, ``internal/server``). Where the
workspace has our agent, that passes ``/v1/`` on to the harness, and says itself why there is none.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from activities.errors import SessionRefused, WorkspaceUnreachable

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
_MAX_HEALTH_BYTES = 64 * 1024
_TEXT_CHARS = 300
_TRY_AGAIN = {408, 425, 429}

_Model = TypeVar("_Model", bound=BaseModel)


class RunStatus(StrEnum):
    """The states of a harness's run."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_FOR_USER = "waiting_for_user"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self in {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class HarnessRun(_Answer):
    """A run as the harness tells it."""

    id: str
    status: RunStatus
    output: str = ""
    error: str = ""


class HarnessEvent(_Answer):
    """One event of a run. Ids are ``<run id>:<number>``, numbered from 0 without a gap."""

    id: str
    type: str
    payload: dict[str, Any] = {}

    @property
    def number(self) -> int | None:
        """Its place among the run's events, where its id tells."""
        digits = self.id.rpartition(":")[2]
        return int(digits) if digits.isascii() and digits.isdecimal() else None


class _Started(_Answer):
    run_id: str


class _Runs(_Answer):
    runs: list[HarnessRun] | None = None


class HarnessClient:
    """One server. ``url`` comes from its backend; ``token`` is our agent's where that is asked, else its own."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str = "") -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

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

    async def start_run(self, prompt: str, conversation_id: str) -> str:
        """Start a run and return its id. A repeat makes another one: see :meth:`runs_of`.

        Raises :class:`SessionRefused` for a 4xx. After :class:`WorkspaceUnreachable` it may have been started or not.
        """
        body = {"prompt": prompt, "conversation_id": conversation_id}
        response = await self._request("POST", "/v1/runs", body)
        if response.status_code not in {200, 201, 202}:
            raise self._refused_or_unreachable(response, "the run")
        return self._read(_Started, response).run_id

    async def runs_of(self, conversation_id: str) -> list[HarnessRun] | None:
        """Return the runs of a conversation, newest first; None where the harness keeps no list of them (501)."""
        response = await self._request("GET", f"/v1/conversations/{conversation_id}/runs")
        if response.status_code == 501:
            return None
        if response.status_code != 200:
            raise self._refused_or_unreachable(response, "to list its runs")
        return self._read(_Runs, response).runs or []

    async def run(self, run_id: str) -> HarnessRun | None:
        """Return a run; None where the harness knows none of that id."""
        response = await self._request("GET", f"/v1/runs/{run_id}")
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise self._refused_or_unreachable(response, "to show the run")
        return self._read(HarnessRun, response)

    async def cancel(self, run_id: str) -> None:
        """Ask for a run's end. One that has ended, or is not known, is no error."""
        response = await self._request("POST", f"/v1/runs/{run_id}/cancel")
        if response.status_code not in {200, 202, 404}:
            raise self._refused_or_unreachable(response, "to cancel the run")

    @asynccontextmanager
    async def events(self, run_id: str, *, after: str = "") -> AsyncGenerator[AsyncIterator[HarnessEvent] | None]:
        """Open the stream of a run's events from the one after ``after`` on; None where the harness does not follow it.

        The stream ends with the run's last event, or before; what cannot be read raises :class:`WorkspaceUnreachable`.
        """
        headers = {"Accept": "text/event-stream", **self._headers, **({"Last-Event-ID": after} if after else {})}
        url = f"{self._url}/v1/runs/{run_id}/events"
        # Silent for as long as the agent thinks: whoever reads looks after the run meanwhile.
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=None)
        try:
            async with self._client.stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=False
            ) as response:
                if response.status_code == 404:
                    yield None
                    return
                if response.status_code != 200:
                    await response.aread()
                    raise self._refused_or_unreachable(response, "to stream the run's events")
                yield _events(response)
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise WorkspaceUnreachable(f"{self._url} broke off the run's events: {e or type(e).__name__}") from e

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + CONNECT_SECONDS):
                return await self._client.request(
                    method, self._url + path, json=body, headers=self._headers, timeout=timeout, follow_redirects=False
                )
        except TimeoutError as e:
            raise WorkspaceUnreachable(f"{self._url}{path} did not answer within {ANSWER_SECONDS:g} s") from e
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise WorkspaceUnreachable(f"{self._url}{path} does not answer: {e or type(e).__name__}") from e

    def _read(self, model: type[_Model], response: httpx.Response) -> _Model:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as e:
            path = response.request.url.path
            raise WorkspaceUnreachable(f"{self._url}{path} answered something that is no harness's answer") from e

    def _refused_or_unreachable(self, response: httpx.Response, what: str) -> SessionRefused | WorkspaceUnreachable:
        said = f"{response.status_code} {_said(response)}".strip()
        if 400 <= response.status_code < 500 and response.status_code not in _TRY_AGAIN:
            return SessionRefused(f"the harness refused {what}: {said}")
        return WorkspaceUnreachable(f"{self._url} answered {said}")


async def _events(response: httpx.Response) -> AsyncIterator[HarnessEvent]:
    """Yield the events of a stream (WHATWG HTML, 9.2.6); what is none of a harness's is passed over."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            try:
                event = HarnessEvent.model_validate_json("\n".join(data))
            except ValidationError:
                event = None
            data = []
            if event is not None:
                yield event


def _status(body: bytes) -> object:
    """Return what a JSON object says is its status; None where it is none, or says nothing."""
    try:
        document = json.loads(body)
        return document.get("status")
    except (ValueError, AttributeError, RecursionError):
        return None


def _said(response: httpx.Response) -> str:
    """Return what an error says: ``{"error": {"code", "message"}}`` of a harness, a problem document of our agent."""
    try:
        document: Any = json.loads(response.content)
        error = document.get("error")
        text = f"{error.get('code')}: {error.get('message')}" if isinstance(error, dict) else document.get("detail")  # pyright: ignore[reportUnknownMemberType]
    except (ValueError, AttributeError, RecursionError):
        text = None
    return str(text or response.text)[:_TEXT_CHARS]
