"""A task's events and output as they come: first what is kept, then what happens, until the task has ended.

A stream is woken by the registry's notifications and asks nothing in between. It waits through an outage of
PostgreSQL. When the server stops, streams end early: a client that has not seen the task's end asks again, with
``Last-Event-ID`` or ``offset``.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from api.dependencies import Services
from messages.statuses import EventKind, TaskStatus, TaskStep, WorkspaceStatus
from messages.views import EventView
from store.changes import Watch
from store.errors import RegistryUnavailable

KEEP_ALIVE_SECONDS = 15.0
RETRY_MILLISECONDS = 2000
_OUTAGE_PAUSE_SECONDS = 1.0
_BATCH = 500

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
"""Headers of streams: kept by no cache, held back by no proxy, taken for nothing else by a browser."""

T = TypeVar("T")


async def _until(event: Awaitable[object]) -> None:
    await event


class _Changes:
    """Waits for news of a task, or for the server to stop."""

    def __init__(self, watch: Watch, closing: asyncio.Event) -> None:
        self._watch = watch
        self._closing = closing

    async def wait(self, seconds: float | None) -> bool:
        """Return True when something changed or the server stops, False when ``seconds`` have passed."""
        waiters = {asyncio.create_task(_until(self._watch.wait())), asyncio.create_task(_until(self._closing.wait()))}
        try:
            done, _ = await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)
        return bool(done)

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T | None:
        """Return what ``read`` returns, trying again while PostgreSQL is away; None when the server stops."""
        while not self._closing.is_set():
            try:
                return await read()
            except RegistryUnavailable:
                await self.wait(_OUTAGE_PAUSE_SECONDS)
        return None


@asynccontextmanager
async def _watching(api: Services, task_id: str) -> AsyncGenerator[_Changes]:
    async with api.registry.changes.watch(task_id) as watch:
        yield _Changes(watch, api.closing)


async def events(
    api: Services, task_id: str, *, after: int, step: TaskStep | None, ended: bool, follow: bool
) -> AsyncIterator[bytes]:
    """Yield server-sent events. ``step`` is where the task was when the stream began, ``ended`` whether it had ended.

    While the workspace is provisioned and says how far that is, so do events of type ``progress``; they have no id,
    because they are kept nowhere. Those that say why a step is tried again have ``retry`` set, and no other.
    """
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    provisioning, shown = after > 0, None  # who resumes may have seen its beginning
    in_session, told = step is TaskStep.SESSION_RUNNING, None
    async with _watching(api, task_id) as changes:
        while not api.closing.is_set():
            batch = await changes.patiently(partial(api.registry.tasks.events, task_id, after=after, limit=_BATCH))
            for event in batch or []:
                yield _frame(event)
                after = event.id
                ended = _ended(event, ended)
                if event.kind is EventKind.WORKSPACE_STATUS:
                    provisioning = event.current == WorkspaceStatus.PROVISIONING
                if event.kind is EventKind.TASK_STEP:
                    in_session = event.current == TaskStep.SESSION_RUNNING
            if batch is None or len(batch) >= _BATCH:
                continue
            if ended or not follow:
                return
            if not in_session:  # where every piece of output wakes us, and nothing is tried again
                error, text = await changes.patiently(partial(api.registry.tasks.news, task_id)) or (None, None)
                if error and error != told:
                    yield _progress(error, retry=True)
                told = error
                if provisioning and text and text != shown:
                    yield _progress(text)
                shown = text
            if not await changes.wait(KEEP_ALIVE_SECONDS):
                yield b": still here\n\n"


async def output(api: Services, task_id: str, *, offset: int, ended: bool, follow: bool) -> AsyncIterator[bytes]:
    """Yield the task's output, byte by byte as it was stored; ``ended`` as for :func:`events`."""
    async with _watching(api, task_id) as changes:
        seen = 0
        while not api.closing.is_set():
            # The end is looked for before the output, so that output stored between the two looks is not missed.
            if follow and not ended:
                seen, ended = await _look_for_end(api, changes, task_id, seen)
            while piece := await changes.patiently(partial(api.registry.sessions.read_output, task_id, offset=offset)):
                if not piece.data:
                    break
                yield piece.data
                offset = piece.next_offset
            if ended or not follow:
                return
            await changes.wait(None)


async def boot_log(api: Services, task_id: str, *, after: int, ended: bool, follow: bool) -> AsyncIterator[bytes]:
    """Yield the boot log after the entry ``after``, one JSON object a line; ``follow`` and ``ended`` as elsewhere."""
    async with _watching(api, task_id) as changes:
        seen = 0
        while not api.closing.is_set():
            if follow and not ended:
                seen, ended = await _look_for_end(api, changes, task_id, seen)
            for entry in await changes.patiently(partial(api.registry.workspaces.boot_log, task_id, after=after)) or []:
                yield f"{entry.model_dump_json()}\n".encode()
                after = entry.id
            if ended or not follow:
                return
            await changes.wait(None)


async def _look_for_end(api: Services, changes: _Changes, task_id: str, seen: int) -> tuple[int, bool]:
    """Return the newest event after the event ``seen``, and whether the task has ended with them."""
    ended = False
    while True:
        batch = await changes.patiently(partial(api.registry.tasks.events, task_id, after=seen, limit=_BATCH))
        for event in batch or []:
            seen = event.id
            ended = _ended(event, ended)
        if batch is None or len(batch) < _BATCH:
            return seen, ended


def _progress(text: str, **more: bool) -> bytes:
    return f"event: progress\ndata: {json.dumps({'text': text, **more})}\n\n".encode()


def _frame(event: EventView) -> bytes:
    return f"id: {event.id}\nevent: {event.kind.value}\ndata: {event.model_dump_json()}\n\n".encode()


def _ended(event: EventView, before: bool) -> bool:
    if event.kind is not EventKind.TASK_STATUS or event.current is None:
        return before
    return TaskStatus(event.current).is_final
