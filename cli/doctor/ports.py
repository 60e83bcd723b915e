"""The ports of the embedded stack, and who listens on them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.doctor.check import Check, broken, ok, warning
from cli.home import StackRecord
from workers.children import STACK_MARKER

_IN_OUR_WAY = {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"}  # noqa: S104 (compared, not bound)


@dataclass(frozen=True)
class Listener:
    """Who listens on a port; ``pid`` and what comes after it are None where it is another user's."""

    pid: int | None = None
    program: str | None = None
    stack: str | None = None
    """The home of the stack that it belongs to."""

    def __str__(self) -> str:
        """Name it."""
        if self.pid is None:
            return "another user's process"
        of_stack = f", of the stack on {self.stack}" if self.stack else ""
        return f"process {self.pid} ({self.program or 'program not known'}{of_stack})"


def listeners() -> dict[int, Listener]:
    """Return who listens on this machine, by the ports that the embedded stack could not have then."""
    return {
        connection.laddr.port: _describe(connection.pid)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.ip in _IN_OUR_WAY
    }


def _describe(pid: int | None) -> Listener:
    program = stack = None
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            program = process.name()
            stack = process.environ().get(STACK_MARKER)
    return Listener(pid, program, stack)


def check_ports(home: Path, record: StackRecord | None, usual: Mapping[str, tuple[int, str]]) -> list[Check]:
    """Check the ports: of the stack that runs, its own; else the ``usual`` ones, by name with their option of ``dev``.

    One that is taken is a warning: ``run`` takes another.
    """
    there = listeners()
    if record is not None and record.is_alive:
        urls = {"api": record.api_url, "temporal": record.temporal_address, "ui": record.ui_url}
        return [_check_own(name, int(urls[name].rpartition(":")[2]), record, there, home) for name in usual]
    # One command for all of them: with fewer options it would stop at the next port.
    taken = [option for port, option in usual.values() if (who := there.get(port)) and who.stack != str(home)]
    mend = f"taskrunner dev {' '.join(f'{option} 0' for option in taken)}"
    return [_check_free(name, port, there.get(port), home, mend) for name, (port, _) in usual.items()]


def _check_own(name: str, port: int, record: StackRecord, there: Mapping[int, Listener], home: Path) -> Check:
    listener = there.get(port)
    if listener is None:
        problem = f"the stack (process {record.pid}) runs, but nothing listens on it"
        return broken(f"port-{name}", str(port), problem, f"kill {record.pid} && taskrunner dev")
    if listener.pid in {record.pid, None} or listener.stack == str(home):
        return ok(f"port-{name}", f"{port}, of our own stack (process {listener.pid or record.pid})")
    return broken(
        f"port-{name}", str(port), f"it was our stack's, and {listener} has it", f"kill {record.pid} && taskrunner dev"
    )


def _check_free(name: str, port: int, listener: Listener | None, home: Path, mend: str) -> Check:
    if listener is None:
        return ok(f"port-{name}", f"{port}, free")
    if listener.stack == str(home):
        return ok(f"port-{name}", f"{port}, {listener}, left behind: the next start ends it")
    return warning(f"port-{name}", str(port), f"taken by {listener}", mend)
