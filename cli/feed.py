"""A task's events and output as they come, each from where it was, whatever becomes of the service meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from cli.client import ApiClient, Disconnected
from cli.discovery import Service
from cli.errors import Unreachable
from messages.statuses import EventKind, TaskStatus
from messages.views import BootLogEntry, EventView

_PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_UNMENTIONED_SECONDS = 2.0
"""How long a service may be away without a word about it: one that is started anew is back by then, or nearly so."""

_T = TypeVar("_T")

Reconnect = Callable[[], Awaitable[Service]]
"""Finds the service again, or starts it again; raises ``Disconnected`` while there is none, to be asked again."""


class TaskFeed:
    """One task at a service that may go away, and come back elsewhere, at any moment.

    It is waited for, for two minutes at a time, once it has answered; with ``patient_at_first`` before that too.
    ``say`` is told of each time that it is away for more than a moment, once.
    """

    def __init__(
        self,
        service: Service,
        task_id: str,
        *,
        reconnect: Reconnect,
        say: Callable[[str], None],
        patient_at_first: bool = False,
    ) -> None:
        self._api = ApiClient(service)
        self._retired: list[ApiClient] = []
        self._id = task_id
        self._reconnect = reconnect
        self._say = say
        self._answers_when_told = -1
        self._is_patient = patient_at_first
        self._reconnecting = asyncio.Lock()
        self._has_ended = asyncio.Event()
        self._offset = 0
        self._last_event = 0
        self._last_entry = 0

    @property
    def api(self) -> ApiClient:
        """The connection as it is now, for what need not succeed."""
        return self._api

    async def close(self) -> None:
        """Close its connections."""
        for api in (*self._retired, self._api):
            await api.close()

    async def ask(self, call: Callable[[ApiClient], Awaitable[_T]]) -> _T:
        """Do it, and do it again with the service that is there then, where the service goes away meanwhile.

        Raises ``Unreachable`` where it stays away.
        """
        loop = asyncio.get_running_loop()
        pause, away_since, lost = _FIRST_PAUSE_SECONDS, None, None
        while True:
            api, seen, answers, began = self._api, self._seen, self._answers, loop.time()
            try:
                if lost is not None:
                    api = await self._connect_again(lost)
                return await call(api)
            except Disconnected as e:
                self._is_patient = self._is_patient or api.has_answered
                if not self._is_patient:
                    raise
                # A task may have nothing to tell while it is followed well; what breaks off at once did not work.
                held = self._answers != answers and loop.time() - began > _LONGEST_PAUSE_SECONDS
                if away_since is None or self._seen != seen or held:  # the first failure since it worked
                    pause, away_since = _FIRST_PAUSE_SECONDS, loop.time()
                if loop.time() > away_since + _PATIENCE_SECONDS:
                    raise Unreachable(str(e)) from e
                if loop.time() >= away_since + _UNMENTIONED_SECONDS:
                    self._tell(api.service, e)
            mention_in = away_since + _UNMENTIONED_SECONDS - loop.time()
            await asyncio.sleep(min(pause, mention_in) if mention_in > 0 else pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            lost = api

    def _tell(self, service: Service, error: Disconnected) -> None:
        """Say that the service is waited for, unless another part of the program has done so since it answered."""
        if self._answers_when_told == self._answers:
            return
        self._answers_when_told = self._answers
        what = str(error).partition(";")[0]
        self._say(
            f"{what[:1].upper()}{what[1:]}; waiting for it, two minutes at most"
            + (" (start it with: taskrunner dev)" if service.is_of_dev else "")
        )

    async def _connect_again(self, lost: ApiClient) -> ApiClient:
        """Replace the connection ``lost`` unless another part of the program has done so already."""
        async with self._reconnecting:
            if self._api is lost:
                service = await self._reconnect()
                if service != lost.service:
                    self._api = ApiClient(service)
                    self._retired.append(lost)  # others may still be using it
            return self._api

    @property
    def _answers(self) -> int:
        return sum(api.answers for api in (*self._retired, self._api))

    @property
    def _seen(self) -> tuple[int, int, int]:
        return self._offset, self._last_event, self._last_entry

    async def events(
        self,
        show: Callable[[EventView], None],
        progress: Callable[[str], None] | None = None,
        retrying: Callable[[str], None] | None = None,
    ) -> None:
        """Call ``show`` with each event, once; return when the task has ended.

        ``progress`` is told what the workspace says of how far it is, ``retrying`` why a step is tried again.
        """

        async def copy(api: ApiClient) -> None:
            while not self._has_ended.is_set():
                stream = api.events(self._id, after=self._last_event, progress=progress, retrying=retrying)
                async with aclosing(stream):
                    async for event in stream:
                        self._last_event = event.id
                        show(event)
                        if event.kind is EventKind.TASK_STATUS and event.current and TaskStatus(event.current).is_final:
                            self._has_ended.set()
                # A server that stops ends its streams early, and nothing is left to stream of a task that has ended.
                if not self._has_ended.is_set() and (await api.task(self._id)).status.is_final:
                    self._has_ended.set()

        await self.ask(copy)

    async def output(self, write: Callable[[int, bytes], None]) -> None:
        """Call ``write`` with each piece of the output, and where it begins; return when the task has ended."""
        was_final = False

        async def copy(api: ApiClient) -> None:
            nonlocal was_final
            while True:
                had_ended, before = was_final or self._has_ended.is_set(), self._offset
                async with aclosing(api.output(self._id, offset=self._offset, follow=True)) as pieces:
                    async for piece in pieces:
                        self._offset += len(piece)
                        write(self._offset - len(piece), piece)
                # A server that stops ends its streams early, so the stream's end alone means nothing.
                task = await api.task(self._id)
                is_whole = task.session is None or self._offset >= task.session.output_bytes
                was_final = task.status.is_final
                if was_final and (is_whole or (had_ended and self._offset == before)):
                    return

        await self.ask(copy)

    async def boot_log(self, show: Callable[[BootLogEntry], None]) -> None:
        """Call ``show`` with each entry of the boot log, once; return when the task has ended."""

        async def copy(api: ApiClient) -> None:
            is_final = False
            while not is_final:
                is_final = (await api.task(self._id)).status.is_final
                async with aclosing(api.boot_log(self._id, after=self._last_entry, follow=True)) as entries:
                    async for entry in entries:
                        self._last_entry = entry.id
                        show(entry)

        await self.ask(copy)
