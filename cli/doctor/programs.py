"""Programs: what is on PATH, and which version it says it is."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from activities.git import OLDEST_GIT
from cli.doctor.check import PATIENCE_SECONDS, Check, Status, broken, ok
from messages.templates import AGENT_PRESETS, INSTALL_COMMANDS

OLDEST_PYTHON = (3, 11)
_OUTPUT_BYTES = 64 * 1024

AGENTS = {name: preset.command[0] for name, preset in AGENT_PRESETS.items() if preset.command[0] in INSTALL_COMMANDS}
"""Programs of the preset agents that somebody has to install, by the agent's name."""

_PACKAGE_MANAGERS = {
    "apt-get": "apt-get install {}",
    "dnf": "dnf install {}",
    "apk": "apk add {}",
    "pacman": "pacman -S {}",
    "zypper": "zypper install {}",
    "brew": "brew install {}",
}


class Said(NamedTuple):
    """What a program said (both streams), and its exit code (negative: it was ended)."""

    code: int
    text: str


class Programs:
    """Asks programs something; none of them, nor what it starts in its session, outlives its answer, or us."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.patience_seconds = patience_seconds
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()

    def ask(self, *argv: str, share: float = 1) -> Said:
        """Run a program to its end and return what it said, 64 KiB at most.

        Raises ``TimeoutError`` where it has not ended within its ``share`` of our patience, and ``OSError`` where it
        cannot be run.
        """
        seconds = self.patience_seconds * share
        deadline = time.monotonic() + seconds
        with self._guard:
            process = subprocess.Popen(
                argv,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            text = _read(process, deadline)
            if len(text) < _OUTPUT_BYTES and not _ends(process, deadline):
                raise TimeoutError(f"no answer within {seconds:.1f} s")
        finally:
            self._end(process)
        return Said(
            -signal.SIGKILL if process.returncode is None else process.returncode, text.decode("utf-8", "replace")
        )

    def close(self) -> None:
        """End what still runs."""
        with self._guard:
            running = list(self._running)
        for process in running:
            self._end(process)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel
            process.wait(1)
        if process.stdout is not None:
            process.stdout.close()
        with self._guard:
            self._running.discard(process)


def _ends(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def _read(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    assert process.stdout is not None
    readable = select.poll()
    readable.register(process.stdout, select.POLLIN)
    text = b""
    while len(text) < _OUTPUT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not readable.poll(left * 1000):
            break
        piece = os.read(process.stdout.fileno(), _OUTPUT_BYTES)
        if not piece:
            break
        text += piece
    return text


def version_in(text: str) -> str | None:
    """Return the first thing in ``text`` that looks like a version."""
    found = re.search(r"\d+\.\d+[\w.+-]*", text)
    return found[0].rstrip(".") if found else None


def installing(package: str) -> str:
    """Return the command that installs a package of the operating system's here."""
    for manager, command in _PACKAGE_MANAGERS.items():
        if shutil.which(manager):
            sudo = "" if os.geteuid() == 0 or manager == "brew" else "sudo "
            return sudo + command.format(package)
    return f"install {package} so that it is on PATH"


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    """Check the interpreter that we run on."""
    found = f"{'.'.join(str(part) for part in version)} ({sys.executable})"
    if version >= OLDEST_PYTHON:
        return ok("python", found)
    return broken("python", found, "older than Python 3.11", installing("python3.11"))


def check_git(programs: Programs) -> Check:
    """Check that git is there and has all we use."""
    oldest = ".".join(str(part) for part in OLDEST_GIT)
    path = shutil.which("git")
    if path is None:
        return broken("git", "not on PATH", f"git {oldest} or newer is needed", installing("git"))
    try:
        said = programs.ask(path, "--version")
    except (OSError, TimeoutError) as e:
        return broken("git", path, f"it cannot be run: {_reason(e)}", installing("git"))
    version = version_in(said.text) if said.code == 0 and said.text.startswith("git version") else None
    if version is None:
        return broken("git", path, "this is no git, or a broken one", installing("git"))
    found = f"{version} ({path})"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_GIT:
        return broken("git", found, f"older than git {oldest}", installing("git"))
    return ok("git", found)


def check_agent(programs: Programs, agent: str) -> Check:
    """Check whether a coding agent is there. None is needed: a template says which one it uses."""
    name, program = f"agent-{agent}", AGENTS[agent]
    path = shutil.which(program)
    if path is None:
        return Check(name, Status.NOT_NEEDED, f"no {program} on PATH", mend=INSTALL_COMMANDS[program])
    try:
        version = version_in(programs.ask(path, "--version").text)
    except (OSError, TimeoutError) as e:
        return ok(name, f"{path} (its version is not known: {_reason(e)})")
    return ok(name, f"{version or 'version not known'} ({path})")


def check_shell() -> Check:
    """Check the shell of the agent ``shell``."""
    if path := shutil.which("/bin/sh"):
        return ok("agent-shell", path)
    return broken("agent-shell", "no /bin/sh", "prompts of the agent 'shell' cannot be run", installing("dash"))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
