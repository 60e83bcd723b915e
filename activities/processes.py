"""Processes of a workspace: started so that they outlive us, found again by what they carry, ended to the last one.

A process is known by pid, start time and boot id, because a pid alone is reused. Which compute it belongs to is told
by its environment (:data:`~messages.names.COMPUTE_MARKER`), which every child inherits; what dropped the marker is
found as a descendant of one that carries it.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from activities.proc import PROC, start_time, stat
from messages.base import Message
from messages.names import COMPUTE_MARKER

_log = logging.getLogger(__name__)

_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_[A-Z]+|TERM|TMPDIR|TZ|XDG_[A-Z_]+"
    r"|((HTTP|HTTPS|FTP|ALL|NO)_PROXY)|((http|https|ftp|all|no)_proxy)"
)
_ORPHANS_GRACE_SECONDS = 2.0
"""What outlives the agent gets this long between SIGTERM and SIGKILL."""
_KILL_PATIENCE_SECONDS = 10.0


class ProcessesRemain(Exception):
    """Processes could not be ended; the text names them."""


class ProcessId(Message):
    """One process for ever: ``started`` is in clock ticks since the boot that ``boot_id`` names."""

    pid: int
    started: int
    boot_id: str


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a worker's environment that a workspace, or a program that we run for it, may see."""
    return {name: value for name, value in environ.items() if _PASSED_ON.fullmatch(name)}


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """Return who runs as ``pid`` now; None for nobody."""
    started = start_time(pid)
    return None if started is None else ProcessId(pid=pid, started=started, boot_id=boot_id())


_REMEMBERED = 1000
_children: dict[ProcessId, "subprocess.Popen[bytes]"] = {}
_endings: dict[ProcessId, int] = {}
"""How the last :data:`_REMEMBERED` of them ended: whoever asks may come when the next one has long been started."""
_children_guard = threading.Lock()


def exit_code(process: ProcessId) -> int | None:
    """Return how a process that we started ended (negative: by that signal); None where it runs or is not ours."""
    with _children_guard:
        child = _children.get(process)
        return child.poll() if child else _endings.get(process)


def is_alive(process: ProcessId) -> bool:
    """Tell whether exactly this process still runs."""
    exit_code(process)  # takes our own dead off the process table
    return identify(process.pid) == process


def start(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
) -> ProcessId:
    """Start a program that outlives this process: own session, no terminal, no pipes, output appended to ``log``."""
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    found = stat(child.pid)  # a zombie at worst: it stays on the table until we take it off
    assert found is not None
    process = ProcessId(pid=child.pid, started=found.started, boot_id=boot_id())
    with _children_guard:
        for ended, code in [(known, code) for known, old in _children.items() if (code := old.poll()) is not None]:
            del _children[ended]
            _endings[ended] = code
        for forgotten in list(_endings)[:-_REMEMBERED]:
            del _endings[forgotten]
        _children[process] = child
    return process


def _carries(pid: str, entry: bytes) -> bool:
    try:
        return entry in (PROC / pid / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return False


def find_carrying(variable: str, value: str) -> list[ProcessId]:
    """Return all living processes but us that have the variable in their environment, oldest first."""
    entry = os.fsencode(f"{variable}={value}")
    pids = [int(found.name) for found in PROC.iterdir() if found.name.isdigit() and _carries(found.name, entry)]
    processes = [process for pid in pids if pid != os.getpid() and (process := identify(pid))]
    return sorted(processes, key=lambda process: (process.started, process.pid))


def find_marked(compute: str) -> list[ProcessId]:
    """Return all living processes that carry the marker of ``compute``, oldest first."""
    return find_carrying(COMPUTE_MARKER, compute)


def find_all(compute: str, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
    """Return the marked processes of ``compute``, the ``known`` ones that still live, and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := stat(int(entry.name))):
            children.setdefault(found.parent, []).append(int(entry.name))
    members = {process.pid: process for process in (*find_marked(compute), *known) if is_alive(process)}
    pending = list(members)
    while pending:
        for pid in children.get(pending.pop(), []):
            if pid not in members and pid != os.getpid() and (process := identify(pid)):
                members[pid] = process
                pending.append(pid)
    return list(members.values())


def command_line(process: ProcessId) -> list[str]:
    """Return a process's argv; empty where it is gone."""
    try:
        return (PROC / str(process.pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def open_pidfd(process: ProcessId) -> int | None:
    """Return a descriptor that becomes readable when exactly this process ends; None where it has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if is_alive(process):
        return fd
    os.close(fd)
    return None


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False where it has ended."""
    fd = open_pidfd(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


async def wait_for_exit(process: ProcessId, timeout_seconds: float | None) -> bool:
    """Wait until the process has ended; False where it has not within the time."""
    fd = open_pidfd(process)
    if fd is None:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout_seconds)
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        exit_code(process)


async def _signal_and_wait(processes: Iterable[ProcessId], number: signal.Signals, timeout_seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    signalled: list[ProcessId] = []
    for process in processes:
        try:
            if send_signal(process, number):
                signalled.append(process)
        except PermissionError as e:
            raise ProcessesRemain(f"process {process.pid} belongs to another user") from e
    for process in signalled:
        await wait_for_exit(process, max(0.0, deadline - asyncio.get_running_loop().time()))


async def end_one(process: ProcessId, first: signal.Signals, *, grace_seconds: float) -> None:
    """End a process, which need not be our child: ``first``, and SIGKILL where it has not ended after the grace.

    Raises :class:`ProcessesRemain` where that does not help either.
    """
    await _signal_and_wait([process], first, grace_seconds)
    await _signal_and_wait([process], signal.SIGKILL, _KILL_PATIENCE_SECONDS)
    if is_alive(process):
        raise ProcessesRemain(f"{process.pid} ({' '.join(command_line(process))[:80]})")


async def end_all(compute: str, *, main: ProcessId | None, grace_seconds: float) -> None:
    """End every process of ``compute``: ``main`` is asked first and given the grace to stop the others in good order.

    Raises :class:`ProcessesRemain` for what survives SIGKILL (it hangs in the kernel).
    """
    members = await asyncio.to_thread(find_all, compute, [main] if main else [])
    if main and main in members:
        await _signal_and_wait([main], signal.SIGTERM, grace_seconds)
        members = await asyncio.to_thread(find_all, compute, members)
    await _signal_and_wait(members, signal.SIGTERM, _ORPHANS_GRACE_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _KILL_PATIENCE_SECONDS
    # Killing one can race with its fork, so look until nobody is found. Those who dropped the marker were seen as
    # descendants before their parents went; they stay in ``members``.
    while members := await asyncio.to_thread(find_all, compute, members):
        if loop.time() >= deadline:
            raise ProcessesRemain(", ".join(f"{p.pid} ({' '.join(command_line(p))[:80]})" for p in members))
        await _signal_and_wait(members, signal.SIGKILL, max(0.0, deadline - loop.time()))
