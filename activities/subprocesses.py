"""Programs run to their end, of which nothing is left when the caller is cancelled."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from activities.threads import until_done

_ERROR_BYTES = 16 * 1024
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Finished:
    """How a program ended. ``stdout`` is cut off at the limit that was given; then ``cut`` is set."""

    returncode: int
    stdout: bytes
    stderr: bytes
    cut: bool = False


async def _read_until(
    stream: asyncio.StreamReader, limit: int | None, exceeded: Callable[[], None]
) -> tuple[bytes, bool]:
    pieces: list[bytes] = []
    size = 0
    while piece := await stream.read(1 << 16):
        size += len(piece)
        if limit is None or size <= limit:
            pieces.append(piece)
        else:
            exceeded()
    return b"".join(pieces), limit is not None and size > limit


async def _read_end(stream: asyncio.StreamReader) -> bytes:
    end = b""
    while piece := await stream.read(1 << 16):
        end = (end + piece)[-_ERROR_BYTES:]
    return end


async def _write(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may end without reading to the end
        stream.write(data)
        await stream.drain()
    stream.close()


async def run_program(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes = b"",
    keep_open: Sequence[int] = (),
    limit: int | None = None,
) -> Finished:
    """Run a program to its end. ``keep_open`` are descriptors it inherits; ``limit`` bounds its output, in bytes.

    When the limit is exceeded, the program and all that it started are killed; when the caller is cancelled, they are
    asked to stop first.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        pass_fds=keep_open,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    stdout_pipe, stderr_pipe = process.stdout, process.stderr

    def kill(number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    async def end() -> None:
        kill(signal.SIGTERM)  # git removes its lock files then; the pipes close when the last of its children is gone
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.gather(_read_end(stdout_pipe), _read_end(stderr_pipe), process.wait())
        kill()
        await process.wait()

    try:
        (stdout, cut), stderr, _ = await asyncio.gather(
            _read_until(stdout_pipe, limit, kill), _read_end(stderr_pipe), _write(process.stdin, stdin)
        )
        return Finished(await process.wait(), stdout, stderr, cut)
    finally:
        if process.returncode is None:
            await until_done(asyncio.ensure_future(end()))


class Stopped(Exception):
    """The programs of a thread were stopped; no further one is started."""


class ThreadPrograms:
    """The programs that one thread runs, one after the other, until another thread stops them.

    Where there are many short ones, each would cost the event loop as much again as it takes by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Finished:
        """Run one to its end. Raises :class:`Stopped` where it is not to be started any more."""
        pipe = subprocess.PIPE
        with self._lock:
            if self._stopped:
                raise Stopped
            self._process = process = subprocess.Popen(
                argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        stdout, stderr = process.communicate()
        return Finished(process.returncode, stdout, stderr)

    def stop(self) -> None:
        """End the one that runs, with all that it started: politely at first. Returns when it has ended."""
        with self._lock:
            self._stopped = True
        if (process := self._process) is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(_STOP_SECONDS)
