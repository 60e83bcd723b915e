"""The client side of a workspace agent's HTTP: its errors become ours, and its answers are checked before use."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from activities.errors import SessionRefused, WorkspaceUnreachable
from messages import callbacks
from messages.signals import SessionFinished
from messages.statuses import SessionStatus

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
RESTART_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_TEXT_CHARS = 500


class AgentSession(BaseModel):
    """A session as its agent tells it. ``delivered``: its end, and all output before, has reached the API."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    session_id: str
    status: SessionStatus
    exit_code: int | None = None
    summary: str | None = None
    error_message: str | None = None
    output_bytes: int = 0
    delivered: bool = False

    def finished(self, workspace_id: str, attempt: int) -> SessionFinished:
        """Return the session's end as the workflow knows it."""
        return SessionFinished(
            workspace_id=workspace_id,
            attempt=attempt,
            session_id=self.session_id,
            status=self.status,
            exit_code=self.exit_code,
            summary=self.summary or "",
            error=self.error_message or "",
        )


class Health(BaseModel):
    """The answer of ``GET /healthz``. Another program's answer on that port is not mistaken for ``ready``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: str
    state: str | None = None
    step: str | None = None
    error: str | None = None
    log_tail: Annotated[str, AfterValidator(callbacks.log_tail)] = ""


class AgentClient:
    """One attempt's workspace agent. ``url`` comes from its backend, ``token`` is derived from our key."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}

    async def health(self, *, timeout_seconds: float = ANSWER_SECONDS) -> Health:
        """Return what the agent says of itself: ``status`` ``ok``, ``booting`` or ``failed``.

        Raises :class:`WorkspaceUnreachable` where nothing answers in time, or something that is no workspace agent.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await self._request("GET", "/healthz", timeout_seconds=timeout_seconds)
        except TimeoutError as e:
            raise WorkspaceUnreachable(f"{self._url} did not answer within {timeout_seconds:g} s") from e
        try:
            health = Health.model_validate_json(response.content)
        except ValidationError:
            raise self._unexpected(response) from None
        if (response.status_code, health.status, health.state) == (200, "ok", "ready"):
            return health
        if response.status_code == 503 and health.status in {"booting", "failed"}:
            return health
        raise self._unexpected(response)

    async def wait_until_booted(
        self, timeout_seconds: float, *, worth_waiting: Callable[[], Awaitable[bool]]
    ) -> Health:
        """Return the agent's last word on its start: it can take a session (``ok``), or never will (``failed``).

        Raises :class:`WorkspaceUnreachable` with the last look's result where neither comes in time.
        ``worth_waiting`` is asked after each look that found nothing; its False ends the wait before the time is up.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            left = deadline - loop.time()
            try:
                health = await self.health(timeout_seconds=max(0.1, left))
                if health.status in {"ok", "failed"}:
                    return health
                doing = f"{self._url} is {health.status}: {health.step or 'no step named'}"
                last = WorkspaceUnreachable(doing, log_tail=health.log_tail)
            except WorkspaceUnreachable as e:
                last = e
            if loop.time() + pause >= deadline or not await worth_waiting():
                raise last
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def create_session(
        self, session_id: str, command: Sequence[str], env: Mapping[str, str], *, if_missing: str = ""
    ) -> AgentSession:
        """Create the session, or return the one that has this id.

        ``if_missing`` ends the session's error where there is no such program. The id stands for one command only, so
        a 409 (its environment was another one then) is an adoption too. Raises :class:`SessionRefused` for any other
        4xx and :class:`WorkspaceUnreachable`, which is worth a repeat.
        """
        body: dict[str, Any] = {"session_id": session_id, "command": list(command), "env": dict(env)}
        if if_missing:
            body["if_missing"] = if_missing
        response = await self._request("POST", "/sessions", json_body=body)
        if response.status_code == 409 and (existing := await self.session(session_id)):
            return existing
        if response.status_code in {200, 201}:
            return self._session(response)
        if 400 <= response.status_code < 500 and response.status_code not in {408, 425, 429}:
            raise SessionRefused(f"the workspace agent refused session {session_id}: {_said(response)}")
        raise self._unexpected(response)

    async def restart_harness(self) -> None:
        """End the workspace's harness server with all that it has started, and return when a new one is ready."""
        response = await self._request("POST", "/harness/restart", timeout_seconds=RESTART_SECONDS)
        if response.status_code != 200:
            raise self._unexpected(response)

    async def session(self, session_id: str, *, wait_seconds: float = 0) -> AgentSession | None:
        """Return the session, None for an unknown one. With ``wait_seconds`` answers when it is final and delivered."""
        query = f"?wait={wait_seconds:g}" if wait_seconds else ""
        response = await self._request(
            "GET", f"/sessions/{session_id}{query}", timeout_seconds=ANSWER_SECONDS + wait_seconds
        )
        return self._known_session(response)

    async def cancel_session(self, session_id: str, *, grace_seconds: float) -> AgentSession | None:
        """End the session (SIGTERM, SIGKILL after the grace) and return it; None for an unknown one."""
        response = await self._request(
            "POST",
            f"/sessions/{session_id}/cancel",
            json_body={"grace_seconds": grace_seconds},
            timeout_seconds=ANSWER_SECONDS + grace_seconds,
        )
        return self._known_session(response)

    def _known_session(self, response: httpx.Response) -> AgentSession | None:
        if response.status_code == 404:
            return None
        if response.status_code == 200:
            return self._session(response)
        raise self._unexpected(response)

    def _session(self, response: httpx.Response) -> AgentSession:
        try:
            return AgentSession.model_validate_json(response.content)
        except ValidationError:
            raise self._unexpected(response) from None

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json_body: Mapping[str, Any] | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
        try:
            return await self._client.request(
                method, self._url + path, json=json_body, headers=self._headers, timeout=timeout, follow_redirects=False
            )
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise WorkspaceUnreachable(f"{self._url} does not answer: {e or type(e).__name__}") from e

    def _unexpected(self, response: httpx.Response) -> WorkspaceUnreachable:
        return WorkspaceUnreachable(f"{self._url} answered {_said(response)}")


def _said(response: httpx.Response) -> str:
    """Return status and reason, from a problem document where there is one."""
    try:
        document = json.loads(response.content)
        text = str(document.get("detail") or document.get("title") or document.get("error") or "")
    except (ValueError, AttributeError, RecursionError):
        text = response.text
    return f"{response.status_code} {text[:_TEXT_CHARS]}".strip()
