"""Following one task from its submission to its end: what ``taskrunner run`` does."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from cli import early, render
from cli.client import ApiClient
from cli.discovery import Service
from cli.display import Display
from cli.errors import INTERRUPTED, CliError, Refused, Unreachable, UsageError
from cli.feed import Reconnect, TaskFeed
from cli.interrupts import TWICE_SECONDS, signals_to_leave
from cli.repository import find_repository
from messages.statuses import BackendKind, EventKind, TaskStatus
from messages.tasks import TaskRequest
from messages.views import EventView, TaskView

_SUBMISSION_SECONDS = 2.0
"""How long who is told to leave waits for the answer to a submission that is on its way."""
_ASK_AFTER_SECONDS = 1.0
"""What a step waits for is asked once it has lasted so long: most are over by then."""


class Follower:
    """Submits a task, shows its steps and its output as they come, and reports how it ended."""

    def __init__(
        self,
        service: Service,
        request: TaskRequest,
        display: Display,
        *,
        reconnect: Reconnect,
        stack_ends_with_us: Callable[[], bool],
        as_json: bool,
        persist_submission: bool,
        posted: early.Posted | None = None,
        noted: Sequence[signal.Signals] = (),
    ) -> None:
        """Prepare; ``request`` has an id, so that it can be repeated and cancelled without knowing its answer.

        ``posted`` is the request where it was sent already, ``noted`` are signals to leave that came meanwhile.
        ``persist_submission`` tells to look for the service again where it is away already at the submission.
        ``stack_ends_with_us`` is asked at a Ctrl-C: where nobody would be left to run the task, it is cancelled.
        """
        self._request = request
        self._posted = posted
        self._noted = noted
        self._id = request.id or ""
        self._feed = TaskFeed(
            service, self._id, reconnect=reconnect, say=display.say, patient_at_first=persist_submission
        )
        self._display = display
        self._stack_ends_with_us = stack_ends_with_us
        self._as_json = as_json
        self._submitted = asyncio.Event()
        self._step_began = asyncio.Event()
        self._interrupts: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._is_hung_up = False
        self._output_is_closed = False
        self._exit_code = INTERRUPTED  # if it comes to that
        self.left_at_once = False
        """Whether we were told a second time to leave, so that nothing more may be waited for."""

    async def run(self) -> int:
        """Follow the task to its end and return the exit code."""
        loop = asyncio.get_running_loop()
        numbers = signals_to_leave()
        for number in numbers:
            loop.add_signal_handler(number, self._interrupts.put_nowait, number)
        for number in self._noted:
            self._interrupts.put_nowait(number)
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
            self._display.close()
            for number in numbers:
                loop.remove_signal_handler(number)
            await self._feed.close()

    async def _wait(self, following: asyncio.Task[TaskView]) -> bool:
        """Wait for the end of the task, or until we are to leave before it; return whether we were interrupted."""
        if await self._ends_before_interrupt(following):
            return False
        if not self._stack_ends_with_us():
            await self._leave(following)
            return True
        self._display.say(f"Cancelling {self._id} and taking its workspace down; once more to leave at once")
        cancelling = asyncio.create_task(self._cancel())
        try:
            if not await self._ends_before_interrupt(following, once_more=True):
                self.left_at_once = True
                self._display.close()
                self._display.say(
                    f"Leaving. What is left of {self._id} is taken down when the stack runs again: taskrunner dev"
                )
        finally:
            cancelling.cancel()
            await asyncio.gather(cancelling, return_exceptions=True)
        return True

    async def _leave(self, following: asyncio.Task[TaskView]) -> None:
        """Say what becomes of the task without us."""
        submitted = asyncio.create_task(self._submitted.wait())
        interrupt = asyncio.create_task(self._interrupts.get())
        # A submission that is on its way is taken or not; who leaves wants to know.
        waiters = {following, submitted, interrupt}
        await asyncio.wait(waiters, timeout=_SUBMISSION_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        submitted.cancel()
        interrupt.cancel()
        self._display.close()
        if self._submitted.is_set():
            self._say_how_to_go_on()
        elif not following.done():
            self._display.say(f"Leaving before the service has answered; see: taskrunner show {self._id}")

    async def _ends_before_interrupt(self, following: asyncio.Task[TaskView], *, once_more: bool = False) -> bool:
        """Return whether the task ended before we were told to leave; ``once_more``: by who means it.

        A terminal that is closed tells it by several signals at once, and by taking no output any more: none of these
        is somebody's wish to leave a task behind. A Ctrl-C is, and a SIGTERM that is no echo of the one before.
        """
        loop = asyncio.get_running_loop()
        meant = {signal.SIGINT, signal.SIGTERM}
        began = loop.time()
        while True:
            interrupt = asyncio.create_task(self._interrupts.get())
            await asyncio.wait({following, interrupt}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                interrupt.cancel()
                return True
            number = interrupt.result()
            self._is_hung_up = self._is_hung_up or number is signal.SIGHUP
            is_echo = number is signal.SIGTERM and loop.time() < began + TWICE_SECONDS
            if not once_more or (number in meant and not is_echo and not self._is_hung_up):
                return False

    async def _follow(self) -> TaskView:
        task = await self._feed.ask(self._submit)
        self._submitted.set()
        self._say_what_was_submitted(task)
        self._display.start(task.created_at, self._cannot_write)
        explaining = asyncio.create_task(self._explain_steps()) if self._display.is_live else None
        try:
            following = self._feed.events(self._show, self._display.progress, self._display.retrying)
            await asyncio.gather(following, self._feed.output(self._write))
            return await self._feed.ask(lambda api: api.task(self._id))
        except Unreachable:
            self._display.close()
            self._say_how_to_go_on()
            raise
        finally:
            if explaining is not None:
                explaining.cancel()
                await asyncio.gather(explaining, return_exceptions=True)

    async def _submit(self, api: ApiClient) -> TaskView:
        posted, self._posted = self._posted, None
        return await api.submit(self._request, posted=posted)

    async def _cancel(self) -> None:
        await self._submitted.wait()  # else it would arrive behind its cancellation, and run
        with contextlib.suppress(Refused):  # it ended meanwhile
            await self._feed.ask(lambda api: api.cancel(self._id))

    async def _explain_steps(self) -> None:
        """Show what a step that lasts waits for, as its workflow says."""
        while True:
            await self._step_began.wait()
            self._step_began.clear()
            await asyncio.sleep(_ASK_AFTER_SECONDS)
            if self._step_began.is_set():
                continue
            with contextlib.suppress(CliError):  # it is only to explain
                progress = await self._feed.api.progress(self._id)
                if not self._step_began.is_set():
                    self._display.waiting(progress)

    def _show(self, event: EventView) -> None:
        if event.kind is EventKind.TASK_STEP and event.current:
            self._step_began.set()
            self._display.step(render.step_text(event.current), event.at)

    def _write(self, _: int, piece: bytes) -> None:
        if self._output_is_closed:
            return
        try:
            self._display.write(piece)
        except OSError as e:
            self._cannot_write(e)

    def _cannot_write(self, error: OSError) -> None:
        """Do as any program whose reader has gone, or whose file takes no more: stop."""
        if self._output_is_closed:
            return
        self._output_is_closed = True
        if not isinstance(error, BrokenPipeError):
            self._exit_code = 1
            self._display.say(f"The output cannot be written: {error.strerror}")
            self._display.discard_output()
        self._interrupts.put_nowait(signal.SIGPIPE)

    def _say_what_was_submitted(self, task: TaskView) -> None:
        where = f", {task.repository.path or task.repository.url}" if task.repository else ""
        where += f" at {task.ref}" if task.ref else ""
        self._display.say(f"Task {task.id} on {task.template}{where}" + (f"\n  {task.ui_url}" if task.ui_url else ""))
        if note := empty_folder_note(self._request):
            self._display.say(note)

    def _say_how_to_go_on(self) -> None:
        ways = (("follow it", f"taskrunner logs -f {self._id}"), ("cancel it", f"taskrunner cancel {self._id}"))
        self._display.say(f"Task {self._id} goes on.\n{render.fields(ways, indent='  ')}")

    def _report(self, task: TaskView) -> None:
        self._display.close(task.finished_at)
        self._display.say(render.outcome(task, stack_ends=self._stack_ends_with_us()))
        if self._as_json:
            print(task.model_dump_json())


def empty_folder_note(request: TaskRequest) -> str | None:
    """Return what is said where a task works in an empty folder that its user may not expect."""
    if request.repository is not None:
        return None
    asked = {request.backend, request.template} - {None}
    if not asked:
        return "not in a git repository: an empty folder is used"
    if asked == {BackendKind.LOCAL.value} and _is_in_repository():
        return "an empty folder is used; for a clone of the repository that you are in, add: --repo ."
    return None


def _is_in_repository() -> bool:
    try:
        return find_repository(Path.cwd()) is not None
    except (UsageError, OSError):  # nothing that a task without it needs
        return False
