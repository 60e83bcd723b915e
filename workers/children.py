"""Server processes that live and die with this one.

A child gets its own session (a Ctrl-C in the terminal reaches us, who then stop things in order) and a parent-death
signal (after a ``kill -9`` of ours the kernel ends it). Its output goes to a log file through us, which is also how we
learn without polling that it serves.
"""

import asyncio
import contextlib
import ctypes
import io
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from activities.processes import ProcessesRemain, ProcessId, end_one
from messages.file_errors import trouble_with
from workers.errors import CannotBeUsed, StackError, did_not_start

STACK_MARKER = "TASKRUNNER_STACK"
"""Environment variable of every server that a stack starts; its value is the stack's home."""

_LOG_LIMIT_BYTES = 4 * 1024 * 1024
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """Return what a child runs before its exec so that it gets ``death_signal`` when the starting thread ends.

    Children must therefore be started by a thread that lives as long as the process, in practice the main one.
    """
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return prepare


class Child:
    """A running server: started by :meth:`start`, ended by :meth:`stop`."""

    def __init__(
        self, name: str, argv: Sequence[str], process: asyncio.subprocess.Process, stop_signal: signal.Signals
    ) -> None:
        self.name = name
        self.argv = argv
        self.process = process
        self._stop_signal = stop_signal
        self._last_lines: deque[str] = deque(maxlen=20)
        self._pump: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        is_ready: Callable[[str], bool],
        timeout: float,
        stop_signal: signal.Signals,
        user: str | None = None,
    ) -> Self:
        """Start ``argv`` and return when a line of its output satisfies ``is_ready``.

        Raises ``StackError`` with its last words where it ends before, or says nothing for ``timeout`` seconds; before
        it is started, where the log cannot be written.
        """
        try:
            file = _open_log(log)
        except OSError as e:
            raise CannotBeUsed(f"{name} cannot be started: {trouble_with(log, e, home=log.parent.parent)}") from e
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                preexec_fn=die_with_parent(stop_signal),
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        except OSError as e:
            file.close()
            raise StackError(f"{name} cannot be started: {argv[0]}: {e.strerror}") from e
        child = cls(name, argv, process, stop_signal)
        child._pump = asyncio.create_task(child._copy_output(file, is_ready), name=f"output of {name}")
        try:
            await child._wait_until_ready(timeout, cwd)
        except BaseException:
            await child.stop()
            raise
        return child

    async def _wait_until_ready(self, timeout: float, cwd: Path) -> None:
        ready = asyncio.create_task(self._ready.wait())
        ended = asyncio.create_task(self.wait())
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if ready in done:
            if self._pump is not None and self._pump.done() and (error := self._pump.exception()):
                raise StackError(f"{self.name} cannot be followed: {type(error).__name__}: {error}") from error
            return
        if ended in done:
            raise did_not_start(f"{self.name} did not start", self.last_words, cwd)
        raise StackError(f"{self.name} did not come up within {timeout:g} s: {self.last_words}")

    async def _copy_output(self, file: io.FileIO, is_ready: Callable[[str], bool]) -> None:
        assert self.process.stdout is not None
        with file:
            try:
                while line := await _read_line(self.process.stdout):
                    with contextlib.suppress(OSError):  # a full disk must not block the server on its output
                        file.write(line)
                    text = line.decode("utf-8", "replace").strip()
                    if text:
                        self._last_lines.append(text)
                    if is_ready(text):
                        self._ready.set()
            except Exception:
                self._ready.set()  # whoever waits for it would never hear of it
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def last_words(self) -> str:
        """What it said at last."""
        return last_words(self._last_lines)

    async def wait(self) -> None:
        """Return when it has ended and its output is read."""
        await self.process.wait()
        if self._pump is not None:
            await asyncio.wait({self._pump}, timeout=2)  # a grandchild may hold the pipe open

    async def stop(self, grace: float = 15.0) -> None:
        """End it: its stop signal, and SIGKILL after ``grace`` seconds."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(self._stop_signal)
                await self._exit_within(grace)
        with contextlib.suppress(ProcessLookupError):  # and what it started itself, in the session that it leads
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.wait()
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _exit_within(self, seconds: float) -> None:
        """Wait for the end of the process itself: asyncio's own wait is for that of all who hold its output open."""
        pidfd = os.pidfd_open(self.process.pid)
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, exited.set)
        try:
            await asyncio.wait_for(exited.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def _open_log(log: Path) -> io.FileIO:
    """Open a log at its end, or anew where it has grown large."""
    is_small = log.exists() and log.stat().st_size < _LOG_LIMIT_BYTES
    return log.open("ab" if is_small else "wb", buffering=0)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Read up to a newline, or a piece where a line is longer than the reader's limit."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as e:
        return e.partial
    except asyncio.LimitOverrunError as e:
        return await stream.readexactly(e.consumed)


def last_words(lines: Iterable[str]) -> str:
    """Return the line that most likely says what went wrong, else the last one."""
    said = [line.strip() for line in lines if line.strip()]
    telling = [line for line in said if any(word in line.upper() for word in ("ERROR", "FATAL", "PANIC"))]
    return (telling or said or ["it said nothing"])[-1][-500:]


async def end_leftover(process: ProcessId, first: signal.Signals, *, grace_seconds: float = 10.0) -> None:
    """End a server that an earlier stack left behind: ``first``, then SIGKILL. Raises ``StackError``."""
    try:
        await end_one(process, first, grace_seconds=grace_seconds)
    except ProcessesRemain as e:
        raise StackError(
            f"process {process.pid} of an earlier stack does not end; end it with: kill -9 {process.pid}"
        ) from e
