"""What the kernel says of a process (``proc(5)``)."""

from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Stat(NamedTuple):
    """A line of the process table; ``started`` in clock ticks since the boot."""

    state: str
    parent: int
    started: int


def stat(pid: int) -> Stat | None:
    """Return who runs as ``pid``, or is a zombie by that number; None for nobody."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything, brackets included
    return Stat(state=fields[0], parent=int(fields[1]), started=int(fields[19]))


def start_time(pid: int) -> int | None:
    """Return when who runs as ``pid`` began, in clock ticks since the boot; None for nobody (a zombie has ended)."""
    found = stat(pid)
    return None if found is None or found.state in "ZX" else found.started
