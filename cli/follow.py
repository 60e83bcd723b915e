"""Following one task from its submission to its end: what ``taskrunner run`` does."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import BinaryIO, TypeVar

from cli import render
from cli.client import ApiClient, Disconnected
from cli.discovery import Service
from cli.errors import INTERRUPTED, Refused, Unreachable, UsageError
from messages.statuses import EventKind, TaskStatus
from messages.tasks import TaskRequest
from messages.views import EventView, TaskView

_PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_T = TypeVar("_T")

Reconnect = Callable[[], Awaitable[Service]]
"""Finds the service again, or starts it again; raises ``Unreachable`` while there is none."""


class Follower:
    """Submits a task, shows its steps on stderr and its output on stdout as they come, and reports how it ended."""

    def __init__(
        self,
        service: Service,
        request: TaskRequest,
        *,
        reconnect: Reconnect,
        stack_ends_with_us: Callable[[], bool],
        as_json: bool,
        persist_submission: bool,
    ) -> None:
        """Prepare; ``request`` has an id, so that it can be repeated and cancelled without knowing its answer.

        ``persist_submission`` tells to look for the service again where it is away already at the submission.
        ``stack_ends_with_us`` is asked at a Ctrl-C: where nobody would be left to run the task, it is cancelled.
        """
        self._api = ApiClient(service)
        self._request = request
        self._id = request.id or ""
        self._reconnect = reconnect
        self._stack_ends_with_us = stack_ends_with_us
        self._as_json = as_json
        self._persist_submission = persist_submission
        self._has_ended = asyncio.Event()
        self._reconnecting = asyncio.Lock()
        self._interrupts: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._output = (sys.stderr if as_json else sys.stdout).buffer
        self._offset = 0
        self._last_event = 0
        self._line_is_open = False
        self._output_is_closed = False
        self._exit_code = INTERRUPTED  # if it comes to that
        self._created_at: datetime | None = None

    async def run(self) -> int:
        """Follow the task to its end and return the exit code."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupts.put_nowait, number)
        following = asyncio.create_task(self._follow())
        try:
            interrupted = await self._wait(following)
            if not following.done():
                return self._exit_code
            try:
                task = await following
            except (UsageError, Refused):
                if interrupted:  # so early that there is no task
                    return self._exit_code
                raise
            self._report(task)
            if interrupted or self._exit_code != INTERRUPTED:
                return self._exit_code
            return 0 if task.status is TaskStatus.COMPLETED else 1
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            await self._api.close()

    async def _wait(self, following: asyncio.Task[TaskView]) -> bool:
        """Wait for the end of the task, or until we are to leave before it; return whether we were interrupted."""
        if await self._ends_before_interrupt(following):
            return False
        if not self._stack_ends_with_us():
            self._say_how_to_go_on()
            return True
        self._say(f"Cancelling {self._id} and taking its workspace down; once more to leave at once")
        cancelling = asyncio.create_task(self._cancel())
        try:
            if not await self._ends_before_interrupt(following):
                self._say(
                    f"Leaving. What is left of {self._id} is taken down when the stack runs again: taskrunner dev"
                )
        finally:
            cancelling.cancel()
            await asyncio.gather(cancelling, return_exceptions=True)
        return True

    async def _ends_before_interrupt(self, following: asyncio.Task[TaskView]) -> bool:
        interrupt = asyncio.create_task(self._interrupts.get())
        try:
            await asyncio.wait({following, interrupt}, return_when=asyncio.FIRST_COMPLETED)
            return following.done()
        finally:
            interrupt.cancel()

    async def _follow(self) -> TaskView:
        submit = self._persist if self._persist_submission else _once
        task = await submit(lambda: self._api.submit(self._request))
        self._created_at = task.created_at
        self._say_what_was_submitted(task)
        await asyncio.gather(self._persist(self._show_steps), self._persist(self._show_output))
        return await self._persist(lambda: self._api.task(self._id))

    async def _cancel(self) -> None:
        with contextlib.suppress(Refused):  # it ended meanwhile, or the submission never arrived
            await self._persist(lambda: self._api.cancel(self._id))

    async def _persist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Do it, and do it again with the service that is there then, where the service goes away meanwhile."""
        loop = asyncio.get_running_loop()
        pause, give_up_at = _FIRST_PAUSE_SECONDS, None
        while True:
            api, seen = self._api, self._seen
            try:
                return await call()
            except Disconnected as e:
                if give_up_at is None or self._seen != seen:  # the first failure since it worked
                    pause, give_up_at = _FIRST_PAUSE_SECONDS, loop.time() + _PATIENCE_SECONDS
                if loop.time() > give_up_at:
                    self._say_how_to_go_on()
                    raise Unreachable(str(e)) from e
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            await self._connect_again(api)

    async def _connect_again(self, lost: ApiClient) -> None:
        """Replace the connection ``lost`` unless another part of the program has done so already."""
        async with self._reconnecting:
            if self._api is not lost:
                return
            service = await self._reconnect()
            if service != lost.service:
                self._api = ApiClient(service)
                await lost.close()

    @property
    def _seen(self) -> tuple[int, int]:
        return self._offset, self._last_event

    async def _show_steps(self) -> None:
        """Show each step that the task reaches; returns when the task has ended."""
        while not self._has_ended.is_set():
            async for event in self._api.events(self._id, after=self._last_event):
                self._last_event = event.id
                if event.kind is EventKind.TASK_STEP and event.current:
                    self._say_step(event)
                elif event.kind is EventKind.TASK_STATUS and event.current and TaskStatus(event.current).is_final:
                    self._has_ended.set()
            # A server that stops ends its streams early, and nothing is left to stream of a task that has ended.
            if not self._has_ended.is_set() and (await self._api.task(self._id)).status.is_final:
                self._has_ended.set()

    async def _show_output(self) -> None:
        """Show the output as it comes; returns when the task has ended and all of it is shown."""
        while True:
            had_ended, before = self._has_ended.is_set(), self._offset
            async for piece in self._api.output(self._id, offset=self._offset, follow=True):
                self._offset += len(piece)
                self._write(piece)
            # A server that stops ends its streams early, so the stream's end alone means nothing.
            task = await self._api.task(self._id)
            is_whole = task.session is None or self._offset >= task.session.output_bytes
            if task.status.is_final and (is_whole or (had_ended and self._offset == before)):
                return

    def _write(self, piece: bytes) -> None:
        if self._output_is_closed:
            return
        try:
            self._output.write(piece)
            self._output.flush()
            self._line_is_open = not piece.endswith(b"\n")
        except OSError as e:
            # As to any program whose reader has gone, or whose file takes no more: it is told to stop.
            self._output_is_closed = True
            if not isinstance(e, BrokenPipeError):
                self._say(f"The output cannot be written: {e.strerror}")
                self._exit_code = 1
                _discard(self._output)
            self._interrupts.put_nowait(signal.SIGPIPE)

    def _say_what_was_submitted(self, task: TaskView) -> None:
        where = f", {task.repository.path or task.repository.url}" if task.repository else ""
        where += f" at {task.ref}" if task.ref else ""
        self._say(f"Task {task.id} on {task.template}{where}" + (f"\n  {task.ui_url}" if task.ui_url else ""))
        if uses_empty_folder(self._request):
            self._say(EMPTY_FOLDER)

    def _say_step(self, event: EventView) -> None:
        passed = render.span(event.at - self._created_at) if self._created_at else ""
        step = str(event.current).replace("_", " ")
        self._say(f"  {event.at.astimezone():%H:%M:%S} {passed:>8}  {step}")

    def _say_how_to_go_on(self) -> None:
        ways = (("follow it", f"taskrunner logs -f {self._id}"), ("cancel it", f"taskrunner cancel {self._id}"))
        self._say(f"Task {self._id} goes on.\n{render.fields(ways, indent='  ')}")

    def _say(self, text: str) -> None:
        if self._line_is_open and self._output.isatty():
            render.say("")
            self._line_is_open = False
        render.say(text)

    def _report(self, task: TaskView) -> None:
        self._say(render.outcome(task, stack_ends=self._stack_ends_with_us()))
        if self._as_json:
            print(task.model_dump_json())


EMPTY_FOLDER = "not in a git repository: an empty folder is used"


def uses_empty_folder(request: TaskRequest) -> bool:
    """Tell whether the user left it to us what to work on, and there was no repository around them."""
    return request.repository is None and request.backend is None and request.template is None


def _discard(output: BinaryIO) -> None:
    """Lead a stream that takes nothing any more, and what it still holds, to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output.fileno())
    os.close(nowhere)


async def _once(call: Callable[[], Awaitable[_T]]) -> _T:
    return await call()
