"""What a ``run`` shows: on a terminal a live list of the task's steps below its output, elsewhere plain lines."""

import asyncio
import codecs
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import click

from cli import render
from cli.screen import OutputLines, Screen, tame
from cli.terminal import can_redraw, discard, wants_colours
from messages.tasks import TaskProgress

_TICK_SECONDS = 0.25
_FLUSH_SECONDS = 0.03
_FLUSH_CHARS = 262_144


class Display:
    """Plain lines: what goes on to stderr, the agent's output as it is to stdout (to stderr beside JSON)."""

    is_live = False

    def __init__(self, *, as_json: bool) -> None:
        self._output: BinaryIO = (sys.stderr if as_json else sys.stdout).buffer
        self._line_is_open = False
        self._created_at: datetime | None = None
        self._retried: set[str] = set()

    def start(self, created_at: datetime, on_error: Callable[[OSError], None]) -> None:
        """Begin with a task of this age. ``on_error`` is told where output that was taken could not be written."""
        self._created_at = created_at
        del on_error  # write() raises it

    def say(self, text: str) -> None:
        """Show a line about what goes on. May be called from any thread."""
        if self._line_is_open and self._output.isatty():
            render.say("")
            self._line_is_open = False
        render.say(text)

    def write(self, piece: bytes) -> None:
        """Show output of the agent; raises ``OSError`` where it cannot be written."""
        self._output.write(piece)
        self._output.flush()
        self._line_is_open = not piece.endswith(b"\n")

    def step(self, name: str, at: datetime) -> None:
        """Show that the task has reached a step, at what time, and how long after its submission."""
        passed = f"after {render.span(at - self._created_at):>6}" if self._created_at else ""
        self.say(f"  {at.astimezone():%H:%M:%S}  {passed}  {name}")

    def waiting(self, progress: TaskProgress) -> None:
        """Show what the current step waits for."""

    def progress(self, text: str) -> None:
        """Show what the workspace says of the current step."""

    def retrying(self, error: str) -> None:
        """Show why the current step is tried again: in a line for each reason, however often it comes."""
        if error not in self._retried:
            self._retried.add(error)
            self.say(f"  trying again: {render.printable(error)}")

    def close(self, ended_at: datetime | None = None) -> None:
        """Leave the terminal as it was, and what was shown on it; ``ended_at`` is the task's end, where it has one."""

    def discard_output(self) -> None:
        """Lead the output, which takes nothing any more, and what it still holds to /dev/null."""
        discard(self._output)


@dataclass
class Step:
    """A step that a task has reached, and what is known of it while it is the last one."""

    name: str
    at: datetime
    waiting: TaskProgress | None = None
    progress: str = ""
    error: str = ""
    """Why it is tried again, where it is."""


def step_lines(steps: Sequence[Step], now: datetime, width: int, *, has_ended: bool = False) -> list[str]:
    """Return the list of steps, each with the time that it took, or takes until ``now``.

    Below the last one of a task that goes on stands what it waits for and what the workspace says, in one line each.
    """
    lines: list[str] = []
    longest = max((len(step.name) for step in steps), default=0)
    for i, step in enumerate(steps):
        is_current = i == len(steps) - 1 and not has_ended
        end = steps[i + 1].at if i + 1 < len(steps) else now
        took = render.span(end - step.at)
        took = f"{'for' if is_current else 'took':>4} {took:>6}"
        line = render.shorten_to(f"  {step.name:<{longest}}  {took}", width)
        lines.append(click.style(line, bold=True) if is_current else line)
        if is_current:
            again = f"trying again: {step.error}" if step.error else ""
            notes = [*_waiting_notes(step.waiting, now), step.progress, again]
            lines.extend(click.style(render.shorten_to(f"    {note}", width), dim=True) for note in notes if note)
    return lines


def _waiting_notes(waiting: TaskProgress | None, now: datetime) -> list[str]:
    if waiting is None:
        return []
    until = f"until {render.clock(waiting.until)} ({render.span(waiting.until - now)} left) " if waiting.until else ""
    error = [f"last error: {render.printable(waiting.last_error)}"] if waiting.last_error else []
    return [f"waits {until}for {render.printable(waiting.waiting_for)}", *error]


class LiveDisplay(Display):
    """A list of steps at the end of the terminal that counts, with the output and all else scrolling above it."""

    is_live = True

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(as_json=as_json)
        self._screen = Screen(sys.stderr.fileno())
        self._takes_output = self._output.isatty()  # else it is a file's or a program's, who get it as it is
        self._has_colours = wants_colours() is not False
        self._steps: list[Step] = []
        self._lines = OutputLines()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[str] = []
        self._pending_chars = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._on_error: Callable[[OSError], None] | None = None

    def start(self, created_at: datetime, on_error: Callable[[OSError], None]) -> None:
        """See :class:`Display`."""
        self._created_at = created_at
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._ticking = asyncio.create_task(self._tick())
        self._loop.add_signal_handler(signal.SIGWINCH, self._draw)

    def say(self, text: str) -> None:
        """See :class:`Display`."""
        if self._ticking is None or self._loop is None:
            render.say(text)
            return
        if threading.current_thread() is not threading.main_thread():
            self._loop.call_soon_threadsafe(self.say, text)
            return
        self._print((text if self._has_colours else click.unstyle(text)) + "\n")

    def write(self, piece: bytes) -> None:
        """See :class:`Display`; what goes to the terminal is written a moment later, and told to ``on_error``."""
        if not self._takes_output:
            super().write(piece)
            return
        if lines := self._lines.take(self._decoder.decode(piece)):
            self._pending.append(lines)
            self._pending_chars += len(lines)
        if self._pending_chars > _FLUSH_CHARS:
            self._draw()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._draw)

    def step(self, name: str, at: datetime) -> None:
        """See :class:`Display`."""
        self._steps.append(Step(name, at))
        self._draw()

    def waiting(self, progress: TaskProgress) -> None:
        """See :class:`Display`."""
        if self._steps:
            self._steps[-1].waiting = progress
            self._draw()

    def progress(self, text: str) -> None:
        """See :class:`Display`."""
        if self._steps:
            self._steps[-1].progress = render.printable(text)
            self._draw()

    def retrying(self, error: str) -> None:
        """See :class:`Display`; in the list, so that it goes with the step."""
        if self._steps:
            self._steps[-1].error = render.printable(error)
            self._draw()

    def close(self, ended_at: datetime | None = None) -> None:
        """See :class:`Display`; the list stays where it stands."""
        if self._ticking is None:
            return
        self._ticking.cancel()
        self._ticking = None
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
        rest = self._lines.take(self._decoder.decode(b"", final=True)) + self._lines.rest()
        now = ended_at or datetime.now(UTC)
        steps = step_lines(self._steps, now, self._screen.size[0], has_ended=ended_at is not None)
        if ended_at is None:
            steps = steps[: len(self._steps)]
        self._print(rest + "".join(f"{line}\n" for line in self._coloured(steps)), [])

    def _draw(self) -> None:
        if self._ticking is None:
            return
        width = self._screen.size[0]
        lines = step_lines(self._steps, datetime.now(UTC), width)
        if self._lines.open:
            lines.insert(0, render.shorten_to(click.unstyle(tame(self._lines.open)), width))
        self._print("", self._coloured(lines))

    def _coloured(self, lines: list[str]) -> list[str]:
        return lines if self._has_colours else list(map(click.unstyle, lines))

    def _print(self, above: str, lines: list[str] | None = None) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        pending, self._pending, self._pending_chars = self._pending, [], 0
        try:
            self._screen.write("".join(pending) + above, lines)
        except OSError as e:
            if self._on_error is not None:
                self._on_error(e)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._draw()


def open_display(*, as_json: bool) -> Display:
    """Return the live display where a terminal can have it: one that also gets the agent's output, or nothing of it."""
    output = sys.stderr if as_json else sys.stdout
    is_apart = not output.isatty()
    if can_redraw(sys.stderr) and (is_apart or os.path.sameopenfile(output.fileno(), sys.stderr.fileno())):
        return LiveDisplay(as_json=as_json)
    return Display(as_json=as_json)
