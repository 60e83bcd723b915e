"""The harness server of a workspace (``kind: harnessd``): started, asked whether it is there, watched, started anew.

It listens on loopback alone; who may talk to it comes through the agent's own HTTP (``agent/relay.py``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Callable, cast

from agent.checkout import StepFailed
from agent.files import log, tail
from agent.processes import (
    COMPUTE_VARIABLE,
    SESSION_VARIABLE,
    Children,
    Process,
    end_processes,
    environment_of,
    process_table,
    signal_name,
    with_descendants,
)

if TYPE_CHECKING:
    import subprocess

    from agent.config import Config, HarnessConfig

HARNESS_SESSION = "-harness"
"""Stands for a session's id in the environment of what the harness starts; no session can have it."""

HOST = "127.0.0.1"
PORT_PLACEHOLDER = "{port}"
RESTART_GRACE_SECONDS = 3.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_HEALTH_SECONDS = 3.0
_MAX_HEALTH_BYTES = 64 * 1024
_SHOWN_BYTES = 200
_TRIES = 3
_TAKEN = "address already in use"


class Harness:
    """One harness server. ``env`` is what its environment starts from; ``changed`` is called when it has ended.

    Nobody can hand it a socket that listens, so its port is one that was free a moment before: where another program
    was quicker, it is started again on another one.
    """

    def __init__(self, config: Config, env: dict[str, str], children: Children, changed: Callable[[], None]) -> None:
        assert config.harness is not None
        self._config: HarnessConfig = config.harness
        self._folder = config.workspace
        self._name = config.name
        self._env = {**env, COMPUTE_VARIABLE: config.name, SESSION_VARIABLE: HARNESS_SESSION}
        self._children = children
        self._changed = changed
        self.log = config.state / "harness.log"
        self._restarting = threading.Lock()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._ending = "was not started"
        self._exited = threading.Event()
        self._stopped = False

    @property
    def program(self) -> str:
        """The name of its program."""
        return self._config.command[0]

    @property
    def token(self) -> str:
        """What its own API wants as a bearer token; empty where it wants none."""
        return self._env.get(self._config.token_env or "", "")

    @property
    def port(self) -> int | None:
        """Where it listens on loopback; None while it is not ready."""
        with self._lock:
            return self._port

    @property
    def is_restarting(self) -> bool:
        """Whether it is being started anew right now."""
        return self._restarting.locked()

    @property
    def trouble(self) -> str:
        """Why it is not there, in words; empty while it is ready."""
        with self._lock:
            return "" if self._port is not None else f"the harness {self._ending}"

    def start(self) -> None:
        """Start it, and return when it is ready. Raises :class:`StepFailed` at once where it ends before that."""
        for tries_left in reversed(range(_TRIES)):
            size = self.log.stat().st_size if self.log.exists() else 0
            port = _free_port(self._config.port)
            process, exited = self._spawn(port)
            pause = _FIRST_PAUSE_SECONDS
            while not exited.wait(pause) and (trouble := _look(port)):
                with self._lock:
                    if not exited.is_set():
                        self._ending = f"is not ready yet: {trouble}"
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            with self._lock:
                if not exited.is_set():
                    self._port = port
                    log(f"the harness (pid {process.pid}) is ready on port {port}")
                    return
                ending = self._ending
                if self._stopped:
                    raise StepFailed("the workspace agent is stopping")
            if tries_left and _TAKEN in self._said_since(size).lower():
                continue
            raise StepFailed(f"the harness {ending} before it was ready: {self.program}")

    def restart(self) -> None:
        """End it with everything that it has started, and start it anew. Raises as :meth:`start`."""
        with self._restarting:
            self._end(RESTART_GRACE_SECONDS)
            log("the harness is started anew")
            self.start()

    def stop(self, grace: float) -> None:
        """End it for good."""
        with self._lock:
            self._stopped = True
        self._end(grace)

    def _spawn(self, port: int) -> tuple[subprocess.Popen[bytes], threading.Event]:
        def filled(text: str) -> str:
            return text.replace(PORT_PLACEHOLDER, str(port))

        env = {**self._env, **{name: filled(value) for name, value in self._config.env.items()}}
        argv = [filled(part) for part in self._config.command]
        exited = threading.Event()
        with self._lock:
            if self._stopped:
                raise StepFailed("the workspace agent is stopping")
            try:
                with self.log.open("ab") as file:
                    process = self._children.start(argv, folder=self._folder, env=env, output=file.fileno())
            except OSError as e:
                raise StepFailed(f"cannot start the harness {argv[0]!r}: {e.strerror}") from e
            self._process, self._exited, self._ending = process, exited, "is not ready yet"
        threading.Thread(target=self._watch, args=(process, exited), name="harness", daemon=True).start()
        return process, exited

    def _watch(self, process: subprocess.Popen[bytes], exited: threading.Event) -> None:
        code = self._children.reap(process)
        ending = f"was killed by {signal_name(-code)}" if code < 0 else f"exited with {code}"
        with self._lock:
            self._port, self._process, self._ending = None, None, ending
        exited.set()
        log(f"the harness {ending}")
        self._changed()

    def _end(self, grace: float) -> None:
        with self._lock:
            exited, self._port = self._exited, None
            runs = self._process is not None
        end_processes(self._members, grace)
        if runs:
            exited.wait(grace + 10)

    def _members(self) -> list[Process]:
        table = process_table()
        with self._lock:
            roots = {self._process.pid} if self._process else set[int]()
        marks = {f"{COMPUTE_VARIABLE}={self._name}".encode(), f"{SESSION_VARIABLE}={HARNESS_SESSION}".encode()}
        roots |= {pid for pid in table if marks <= environment_of(pid)}
        found = with_descendants(roots, table) - {os.getpid()}
        return sorted((table[pid] for pid in found if pid in table and table[pid].state not in "ZX"))

    def _said_since(self, size: int) -> str:
        with self.log.open("rb") as file:
            file.seek(size)
            return file.read(64 * 1024).decode("utf-8", "replace")

    def log_tail(self) -> str:
        """Return the last 8 KiB of its log."""
        return tail(self.log)


def _free_port(fixed: int | None) -> int:
    """Return a port on which nobody listens: ``fixed`` where that is given. Raises :class:`StepFailed`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, fixed or 0))
        except OSError as e:
            raise StepFailed(f"port {fixed}, where the harness is to listen, cannot be used: {e.strerror}") from e
        return cast("int", probe.getsockname()[1])


def _look(port: int) -> str:
    """Return why the server is not ready, empty if it is: 200, and where that is JSON with a status, ``ok``."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        data = response.read(_MAX_HEALTH_BYTES)
    except (OSError, http.client.HTTPException) as e:
        return f"/healthz does not answer: {e or type(e).__name__}"
    finally:
        connection.close()
    status = None
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        document: Any = json.loads(data)
        status = document.get("status")
    if response.status == 200 and status in {None, "ok"}:
        return ""
    return f"/healthz answered {response.status} {data[:_SHOWN_BYTES].decode('utf-8', 'replace').strip()}"
