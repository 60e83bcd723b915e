"""The agent at work: everything put together, from the start to the order to stop."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.api import REQUEST_SECONDS, Connection, Token, Unreachable
from agent.boot import Boot
from agent.config import Config, ConfigError
from agent.files import log
from agent.harness import Harness
from agent.outbox import FileQueue, Outbox
from agent.processes import Children, become_subreaper
from agent.server import Application, Server, listen
from agent.sessions import Sessions

if TYPE_CHECKING:
    from pathlib import Path

STOP_GRACE_SECONDS = 3.0
LAST_DELIVERY_SECONDS = 5.0
_KNOWN_SESSIONS = 100  # the API takes no more in one heartbeat


class Agent:
    """One workspace's agent, on a folder of state that no other agent uses at the same time."""

    def __init__(self, config: Config, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        kept_back = config.harness.secret_env if config.harness else ()
        secrets = {name: value for name in kept_back if (value := os.environ.pop(name, None)) is not None}
        env = {**os.environ, **config.env}
        self._children = Children()
        self._beat_now = threading.Event()
        self._harness: Harness | None = None
        if config.harness:
            secrets.update(config.harness.secrets)
            self._harness = Harness(config, {**env, **secrets}, self._children, self._beat_now.set)
        self._token = Token(config.callback_token.strip(), config.state / "callback-token")
        self._root = f"/api/workspaces/{config.workspace_id}"
        self._outbox = Outbox(config.api_url, self._root, self._token)
        spool = config.state / "spool"
        # Apart from each other, so that a boot log that the API cannot store just now never holds up the verdict.
        verdicts = FileQueue(spool / "verdict", "verdict", self._outbox.notify)
        entries = FileQueue(spool / "boot-log", "boot log", self._outbox.notify)
        self._lanes = (verdicts, entries)
        self._boot = Boot(
            config,
            env,
            self._children,
            verdicts=verdicts,
            entries=entries,
            harness=self._harness,
            changed=self._beat_now.set,
        )
        self._sessions = Sessions(config, env, self._children, self._outbox)
        self._stopping = False

    def run(self) -> None:
        """Serve, boot, beat and deliver until SIGTERM or SIGINT; then end the sessions and deliver what can be."""
        reader = _signals()
        become_subreaper()
        self._sessions.load()
        for lane in self._lanes:
            self._outbox.add(lane)
        application = Application(self._config.agent_token_sha256, self.health, self._sessions, self._harness)
        server = Server(self._listener, application)
        if not self._boot.has_work:
            self._boot.run()  # ready before the first request is read
        log(f"agent {__version__} of {self._config.name} listens on {server.server_address}")
        threading.Thread(target=server.serve_forever, args=(3600,), name="http", daemon=True).start()
        threading.Thread(target=self._boot.run, name="boot", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        os.read(reader, 1)
        self._stop()

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the answer to ``GET /healthz``."""
        progress = self._boot.progress
        body: dict[str, Any] = {
            "workspace_id": self._config.workspace_id,
            "attempt": self._config.attempt,
            "agent_version": __version__,
            "pending": self._outbox.pending(),
        }
        if body["pending"]:
            # Whoever asks is there again, and the API may be too: a beat that succeeds wakes the senders that wait.
            self._beat_now.set()
        if self._stopping:
            return 503, {"status": "stopping", **body}
        if progress.phase == "ready" and self._harness is not None and (trouble := self._harness.trouble):
            if self._harness.is_restarting:
                return 503, {"status": "booting", "step": trouble, **body}
            return 503, {"status": "failed", "error": trouble, "log_tail": self._harness.log_tail(), **body}
        if progress.phase == "ready":
            return 200, {"status": "ok", "state": "ready", **body}
        if progress.phase == "failed":
            return 503, {"status": "failed", "error": progress.error, "log_tail": self._boot.log_tail(), **body}
        step = progress.step
        if step == "harness" and self._harness is not None:
            step = self._harness.trouble or step
        return 503, {"status": "booting", "step": step, "log_tail": self._boot.log_tail(), **body}

    def _beat(self) -> None:
        """Beat at once, at every interval, and when the boot ends. A beat that succeeds wakes the waiting senders."""
        interval = self._config.heartbeat_interval_seconds
        connection = Connection(self._config.api_url)
        trouble = ""
        while not self._stopping:
            started = time.monotonic()
            self._beat_now.clear()
            try:
                token = self._token.text
                answer = connection.post(
                    f"{self._root}/heartbeat",
                    self._beat_body(),
                    token,
                    timeout=min(REQUEST_SECONDS, max(1.0, interval)),
                )
                error = "" if 200 <= answer.status < 300 else f"{answer.status} {answer.body.get('detail', '')}"
                if not error:
                    if self._token.adopt(answer.body.get("refreshed_token")):
                        log("the callback token was renewed")
                    self._outbox.wake()
            except Unreachable as e:
                error = str(e)
            except Exception as e:  # without heartbeats the workspace would be taken for lost
                error = f"{type(e).__name__}: {e}"
            if error != trouble:
                log(f"heartbeat: {error or 'the API answers again'}")
                trouble = error
            self._children.reap_orphans()
            self._beat_now.wait(max(0.0, started + interval - time.monotonic()))

    def _beat_body(self) -> bytes:
        progress = self._boot.progress
        body: dict[str, Any] = {
            "state": {"failed": "degraded"}.get(progress.phase, progress.phase),
            "sessions": self._sessions.ids()[-_KNOWN_SESSIONS:],
            "pending": self._outbox.pending(),
        }
        if progress.phase != "ready":
            body["reason"] = progress.error or progress.step
        elif self._harness is not None and (trouble := self._harness.trouble):
            body.update(state="degraded", reason=trouble)
        return json.dumps(body).encode()

    def _stop(self) -> None:
        log("stopping")
        self._stopping = True
        self._boot.stop(STOP_GRACE_SECONDS)
        self._sessions.stop_all(STOP_GRACE_SECONDS)
        self._outbox.wake()
        if not self._outbox.wait_until_empty(LAST_DELIVERY_SECONDS):
            log(f"stopped with {self._outbox.pending()} callbacks to deliver; the next start delivers them")
        self._outbox.stop()


def serve(config: Config, listen_fd: int | None) -> None:
    """Run an agent until it is told to stop.

    Raises :class:`ConfigError` if there is nothing to listen on or another agent uses the same state, ``OSError`` if
    the state folder or the socket cannot be used.
    """
    lock = lock_state(config)
    try:
        if listen_fd is not None:
            listener = socket.socket(fileno=listen_fd)
        elif config.listen is not None:
            listener = listen(config.listen)
        else:
            raise ConfigError("there is nothing to listen on: neither --listen-fd nor listen in the configuration")
        Agent(config, listener).run()
    finally:
        os.close(lock)


def lock_state(config: Config) -> int:
    """Make the state folder and lock it; the lock goes with the process. Raises :class:`ConfigError` or ``OSError``."""
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock: Path = config.state / "agent.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another workspace agent uses {str(config.state)!r}") from None
    return descriptor


def _signals() -> int:
    """Return a descriptor that becomes readable when the agent is told to stop."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)
    return reader


def _note(number: int, frame: object) -> None:
    """Do nothing here: a handler may run anywhere, so the descriptor alone carries the news."""
