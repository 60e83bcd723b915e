"""The client side of the task API."""

import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from activities.threads import in_daemon_thread
from cli import early
from cli.discovery import Service
from cli.errors import Refused, Unreachable, UsageError
from messages.names import is_id
from messages.tasks import TaskProgress, TaskRequest
from messages.urls import is_loopback, without_user_info
from messages.views import BootLogEntry, EventView, TaskPage, TaskView
from workers.errors import ASK_THE_DOCTOR

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_STREAM_TIMEOUT = httpx.Timeout(45.0, connect=5.0)
"""Event streams say something every 15 s, so one that is silent for three times as long is dead."""
_QUIET_SECONDS = 60.0
"""How long a stream of output may be silent, which says nothing of itself, before it is asked for anew: the connection
may have died without a word."""

_PROBLEM = "application/problem+json"

_View = TypeVar("_View", TaskView, TaskPage, TaskProgress)


class Disconnected(Unreachable):
    """The service went away, or cannot answer now; the same request may succeed later."""


class ApiClient:
    """A connection to one service.

    Errors: ``UsageError`` for a request that is wrong, ``Refused`` for what there is not or its state does not allow,
    ``Disconnected`` where the service is away. Generators are to be used with ``aclosing``: what a reader that fails
    leaves open, the event loop closes as it ends, all of it at once, so that one part complains of the other.
    """

    def __init__(self, service: Service, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Prepare; ``transport`` is used in place of a connection to the service's address."""
        self.service = service
        self.has_answered = False
        self.answers = 0
        """How many requests it has answered, but with that it cannot answer now."""
        headers = {"Authorization": f"Bearer {service.token}"} if service.token else {}
        self._http = httpx.AsyncClient(
            base_url=service.url,
            headers=headers,
            timeout=_TIMEOUT,
            trust_env=not is_loopback(service.url),
            verify=_trust(service.url),
            follow_redirects=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def submit(self, request: TaskRequest, *, posted: early.Posted | None = None) -> TaskView:
        """Submit a task, or find it again where the same request was submitted before.

        The request has an id: only so can it be repeated where nobody knows whether it was taken. ``posted`` is this
        very request where it has been sent already: it is sent again only if it gets no answer.
        """
        try:
            answer = await self._answer_to(posted) if posted is not None else None
            if answer is None:
                answer = await self._call("POST", "/api/tasks", json=request.body())
        except Refused as e:  # the id stands for another request
            raise UsageError(str(e)) from None
        except Disconnected as e:
            again = f"--id {request.id}"
            if again in str(e) or isinstance(e.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise Disconnected(f"{e}; the task may have been taken: repeat the same request with {again}") from e
        return _read(TaskView, answer)

    async def task(self, task_id: str) -> TaskView:
        """Return one task."""
        return _read(TaskView, await self._call("GET", f"/api/tasks/{_checked(task_id)}"))

    async def tasks(self, **filters: str | int | None) -> TaskPage:
        """Return a page of tasks, newest first."""
        params = {name: value for name, value in filters.items() if value is not None}
        return _read(TaskPage, await self._call("GET", "/api/tasks", params=params))

    async def cancel(self, task_id: str) -> None:
        """Ask for a task's cancellation; returns when it is asked for."""
        await self._call("POST", f"/api/tasks/{_checked(task_id)}/cancel")

    async def diff(self, task_id: str) -> bytes:
        """Return the change that a task's agent made, as a patch."""
        return (await self._call("GET", f"/api/tasks/{_checked(task_id)}/diff", gives="text/x-diff")).content

    async def bundle(self, task_id: str) -> bytes:
        """Return the change that a task's agent made, as a git bundle."""
        path = f"/api/tasks/{_checked(task_id)}/bundle"
        return (await self._call("GET", path, gives="application/x-git-bundle")).content

    async def templates(self) -> dict[str, Any]:
        """Return the templates that the service knows, and why others cannot be used."""
        return self._object(await self._call("GET", "/api/templates"), "templates", "broken")

    async def template(self, name: str) -> dict[str, Any]:
        """Return one template, with its effective values."""
        return self._object(await self._call("GET", f"/api/templates/{_checked(name)}"), "template")

    async def output(self, task_id: str, *, offset: int = 0, follow: bool = False) -> AsyncGenerator[bytes]:
        """Yield the output of a task's agent from ``offset`` (bytes) on; with ``follow`` until the task has ended.

        May end before, where there is no output for a minute or the server stops.
        """
        params = {"offset": offset, "follow": "true" if follow else "false"}
        async with self._stream(f"/api/tasks/{_checked(task_id)}/logs", params=params, gives="text/plain") as answer:
            async for piece in answer.aiter_raw():
                yield piece

    async def boot_log(self, task_id: str, *, after: int = 0, follow: bool = False) -> AsyncGenerator[BootLogEntry]:
        """Yield the boot log after the entry ``after``; with ``follow`` until the task has ended, or earlier."""
        params = {"after": after, "follow": "true" if follow else "false"}
        path = f"/api/tasks/{_checked(task_id)}/boot-log"
        async with (
            self._stream(path, params=params, gives="application/x-ndjson") as answer,
            aclosing(_lines(answer)) as lines,
        ):
            async for line in lines:
                yield BootLogEntry.model_validate_json(line)

    async def progress(self, task_id: str) -> TaskProgress:
        """Return what a task that runs waits for."""
        return _read(TaskProgress, await self._call("GET", f"/api/tasks/{_checked(task_id)}/progress"))

    async def events(
        self,
        task_id: str,
        *,
        after: int = 0,
        follow: bool = True,
        progress: Callable[[str], None] | None = None,
        retrying: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[EventView]:
        """Yield what happened to a task since the event ``after``; with ``follow``, what happens until it has ended.

        ``progress`` is called with what the workspace says of how far its provisioning is, ``retrying`` with why
        a step is tried again; neither is a transition.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        params = {"follow": "true" if follow else "false"}
        path = f"/api/tasks/{_checked(task_id)}/events"
        async with (
            self._stream(path, headers=headers, params=params, gives="text/event-stream") as answer,
            aclosing(_lines(answer)) as lines,
        ):
            data: list[str] = []
            kind = ""
            async for line in lines:
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    if kind != "progress":
                        yield EventView.model_validate_json("\n".join(data))
                    else:
                        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                            said = json.loads("\n".join(data))
                            if (tell := retrying if said.get("retry") else progress) is not None:
                                tell(str(said["text"]))
                    data, kind = [], ""

    async def _answer_to(self, posted: early.Posted) -> httpx.Response | None:
        found = await in_daemon_thread(posted.answer)
        if found is None:
            return None
        asked = self._http.build_request("POST", "/api/tasks")
        answer = httpx.Response(found.status, headers=found.headers, content=found.body, request=asked)
        self._raise_for(answer, "application/json")
        return answer

    async def _call(self, method: str, path: str, *, gives: str = "application/json", **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as e:
            raise self._away(e) from e
        self._raise_for(answer, gives)
        return answer

    @asynccontextmanager
    async def _stream(self, path: str, *, gives: str, **options: Any) -> AsyncGenerator[httpx.Response]:
        speaks = path.endswith("/events")
        timeout = _STREAM_TIMEOUT if speaks else httpx.Timeout(_QUIET_SECONDS, connect=5.0)
        has_begun = False
        try:
            async with self._http.stream("GET", path, timeout=timeout, **options) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                self._raise_for(answer, gives)
                has_begun = True
                yield answer
        except httpx.ReadTimeout as e:
            if speaks or not has_begun:
                raise self._away(e) from e
        except httpx.HTTPError as e:
            raise self._away(e) from e

    def _away(self, error: httpx.HTTPError) -> Unreachable:
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.RemoteProtocolError) and not self.has_answered and "illegal" in reason:
            return self._not_ours()  # what answers does not even speak HTTP
        mend = "start one with: taskrunner dev"
        if not self.service.is_of_dev:
            mend = "correct TASKRUNNER_API_URL, or start the service there"
        elif self.service.stack is None:
            mend += ", or correct TASKRUNNER_API_URL"
        return Disconnected(f"no service answers at {self.service.shown_url} ({reason}); {mend}; {ASK_THE_DOCTOR}")

    def _object(self, answer: httpx.Response, *keys: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = answer.json()
            if all(key in found for key in keys):
                return found
        except (ValueError, TypeError):
            pass
        raise self._not_ours()

    def _not_ours(self) -> Unreachable:
        return Unreachable(
            f"{self.service.shown_url} answered something that is not taskrunner's API; check TASKRUNNER_API_URL"
        )

    def _raise_for(self, answer: httpx.Response, gives: str) -> None:
        """Raise what an answer stands for that is not the one that was asked for, of the media type ``gives``."""
        code = answer.status_code
        is_gateway = code in {502, 503, 504}  # may be one in front of the API, which says so in its own words
        if not is_gateway and code != 204 and not _is_of_type(answer, gives if code < 300 else _PROBLEM):
            raise self._not_ours()
        if code == 401:
            raise Unreachable(f"{self.service.shown_url} {'; '.join(self.service.refusal)}")
        self.has_answered = True
        if code < 400:
            self.answers += 1
            return
        text = _problem_text(answer)
        if _problem_type(answer) == "not-set-up":  # waiting does not help
            raise Unreachable(f"{self.service.shown_url} cannot do it: {text}")
        if code >= 500 or code in {408, 425, 429}:
            raise Disconnected(f"{self.service.shown_url} cannot answer now: {text}; try again later")
        raise (Refused if code in {404, 409} else UsageError)(text)


def _trust(url: str) -> ssl.SSLContext:
    """Return whose certificates are accepted at ``url``: those that httpx accepts; over plain HTTP nobody's.

    Loading them takes longer than most commands do.
    """
    if urlsplit(url).scheme == "https":
        return httpx.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def _lines(answer: httpx.Response) -> AsyncGenerator[str]:
    """Yield the lines of a stream: only a newline ends one, not what else Python takes for an end, such as U+2028."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").removesuffix("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def _is_of_type(answer: httpx.Response, media_type: str) -> bool:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower() == media_type


def _problem_text(answer: httpx.Response) -> str:
    """Return the text of an ``application/problem+json`` answer (RFC 9457), or what stands for one."""
    try:
        problem = answer.json()
        if str(problem.get("type")).endswith(":unknown-task"):
            return f"{str(problem['detail']).partition(';')[0]}; see: taskrunner list"
        text = problem.get("detail") or problem.get("title")
    except (ValueError, AttributeError, KeyError):
        text = None
    return str(text) if text else f"HTTP {answer.status_code} {answer.reason_phrase}"


def _problem_type(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("type")).rpartition(":")[2]
    except (ValueError, AttributeError):
        return ""


def _read(model: type[_View], answer: httpx.Response) -> _View:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as e:
        url = without_user_info(str(answer.request.url.copy_with(raw_path=b"/")))
        raise Unreachable(
            f"{url.rstrip('/')} answered something that is not taskrunner's API; check TASKRUNNER_API_URL"
        ) from e


def _checked(name: str) -> str:
    """Refuse what cannot be an id before it becomes part of a path."""
    if not is_id(name):
        raise UsageError(f"{name!r} is not an id: at most 40 small letters, digits and hyphens, not a hyphen first")
    return name
