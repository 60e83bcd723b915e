"""Starting processes, finding all that came of them, and ending them.

The agent is the subreaper of its workspace: a process whose parent is gone becomes the agent's own child, so not even a
daemon is lost. Nothing here polls: an exit is awaited on a pidfd.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, NamedTuple, cast

from agent.files import log

if TYPE_CHECKING:
    from typing import IO

SESSION_VARIABLE = "TASKRUNNER_SESSION"
COMPUTE_VARIABLE = "TASKRUNNER_COMPUTE"
_PR_SET_CHILD_SUBREAPER = 36
_KILL_SECONDS = 10.0


class Process(NamedTuple):
    """One line of the process table. ``started`` is in clock ticks since the boot; with ``pid`` it names a process."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int


def become_subreaper() -> None:
    """Take over every descendant whose parent exits."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log(f"cannot become a subreaper: {os.strerror(ctypes.get_errno())}")


def boot_id() -> str:
    """Return what names this boot of the machine; empty if the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def process_table() -> dict[int, Process]:
    """Return every process that can be seen, zombies included."""
    table: dict[int, Process] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (found := look_at(int(entry.name))) is not None:
            table[found.pid] = found
    return table


def look_at(pid: int) -> Process | None:
    """Return one process, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
        return Process(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def environment_of(pid: int) -> set[bytes]:
    """Return the environment that a process was started with; empty if it may not be read."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def with_descendants(pids: Iterable[int], table: dict[int, Process]) -> set[int]:
    """Return ``pids`` and everything below them."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def end_processes(find: Callable[[], list[Process]], grace: float, *, terminate: bool = True) -> bool:
    """End what ``find`` finds, again and again until it finds nothing: TERM first, KILL after ``grace`` seconds.

    With ``terminate`` False nobody is told, only killed when the time has come. Returns False if something is left,
    which takes a process that the kernel does not let go or that belongs to another user.
    """
    now = time.monotonic()
    kill_at, give_up_at = now + grace, now + grace + _KILL_SECONDS
    told: set[Process] = set()
    while True:
        left = find()
        if not left:
            return True
        now = time.monotonic()
        if now >= give_up_at:
            log(f"cannot end the processes {sorted(process.pid for process in left)}")
            return False
        if now >= kill_at:
            for process in left:
                _send(process, signal.SIGKILL)
            _wait_for_exits(left, min(1.0, give_up_at - now))
        else:
            if terminate:
                for process in left:
                    if process not in told:
                        told.add(process)
                        _send(process, signal.SIGTERM)
            _wait_for_exits(left, kill_at - now)


def _send(process: Process, number: signal.Signals) -> None:
    """Signal exactly this process, not one that got its pid meanwhile."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            now = look_at(process.pid)
            if now is not None and now.started == process.started:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _wait_for_exits(processes: list[Process], timeout: float) -> None:
    """Wait until all of them have exited, or the time is over."""
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as opened:
        poller = select.poll()
        waiting: set[int] = set()
        for process in processes:
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(process.pid)
                opened.callback(os.close, descriptor)
                poller.register(descriptor, select.POLLIN)
                waiting.add(descriptor)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left * 1000):
                poller.unregister(descriptor)
                waiting.discard(descriptor)


class Children:
    """The processes that the agent itself started, so that the orphans it inherits can be told from them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: set[int] = set()

    def start(
        self, argv: list[str], *, folder: Path, env: dict[str, str], output: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, with nothing on its standard input.

        Output and errors go to ``output``. Raises ``OSError``. Whoever starts it must :meth:`reap` it.
        """
        # In UTF-8 whatever the machine's locale is: a prompt holds what people write.
        encoded = {_encode(name): _encode(value) for name, value in env.items()}
        with self._lock:  # a child that is not noted yet must not be taken for an orphan
            process = subprocess.Popen(
                [_encode(part) for part in argv],
                cwd=folder,
                env=cast("dict[str, str]", encoded),  # bytes are fine, whatever the stubs say
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._started.add(process.pid)
        return process

    def reap(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the program's end and return its exit code, or minus the number of the signal that killed it."""
        code = process.wait()
        with self._lock:
            self._started.discard(process.pid)
        return code

    def is_own(self, pid: int) -> bool:
        """Tell whether the agent itself started this child."""
        with self._lock:
            return pid in self._started

    def reap_orphans(self) -> None:
        """Let go of inherited children that have exited."""
        mine = os.getpid()
        with self._lock:
            for process in process_table().values():
                if process.parent == mine and process.state == "Z" and process.pid not in self._started:
                    with contextlib.suppress(OSError):
                        os.waitpid(process.pid, os.WNOHANG)


def signal_name(number: int) -> str:
    """Return for example ``SIGKILL``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
