"""Systemd: a workspace's processes leave the worker's unit, or stopping the worker would stop them too.

``systemd-run --scope`` would do it before the start, but fails the start where it cannot; here it is asked for after
the start, and a refusal costs only a warning.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from activities.processes import ProcessId
from activities.subprocesses import run_program

_log = logging.getLogger(__name__)


def scope_command(name: str, pid: int, *, user: bool) -> list[str]:
    """Return the command that moves ``pid`` into a transient scope called ``name``."""
    return [
        *("busctl", "--user" if user else "--system", "--quiet", "call"),
        *("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", f"{name}.scope", "fail"),
        *("2", "PIDs", "au", "1", str(pid), "CollectMode", "s", "inactive-or-failed", "0"),
    ]


def runs_systemd() -> bool:
    """Tell whether systemd is this machine's first process (``sd_booted(3)``)."""
    return Path("/run/systemd/system").is_dir()


async def move_to_scope(name: str, process: ProcessId, *, env: Mapping[str, str]) -> None:
    """Give a process and its children a scope of their own, where this machine runs systemd."""
    if not runs_systemd():
        return
    argv = scope_command(name, process.pid, user=os.geteuid() != 0)
    try:
        finished = await run_program(argv, cwd=Path("/"), env=env)
        said = finished.stderr.decode("utf-8", "replace").strip() if finished.returncode else ""
    except OSError as e:
        said = str(e)
    if said:
        _log.warning(
            "workspace %s stays in the worker's systemd unit and would end with it (set KillMode=process): %s",
            name,
            said,
        )
