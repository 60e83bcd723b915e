"""From nothing to ready: the checkout, the setup commands, and the report of how it went.

``boot.json`` in the state folder tells which steps are done, so a restarted agent repeats none; what it has to report
waits in a queue on disk.
"""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from agent import __version__
from agent.checkout import StepFailed, prepare_checkout
from agent.files import log, read_json, tail, utc_now, without_credentials, write_json
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
    from pathlib import Path

    from agent.config import Config
    from agent.harness import Harness
    from agent.outbox import FileQueue

SETUP_SESSION = "-setup"
"""Stands for a session's id in the environment of what setup starts; no session can have it."""

_SHOWN_CHARS = 1000


class Progress(NamedTuple):
    """How far the boot is. ``phase`` is ``booting``, ``ready`` or ``failed``, ``error`` empty unless failed."""

    phase: str = "booting"
    step: str = "starting"
    error: str = ""
    checkout: bool = False
    setup: int = 0


class Boot:
    """One workspace's boot. ``verdicts`` takes the ready or failed callback, ``entries`` the boot log."""

    def __init__(
        self,
        config: Config,
        env: dict[str, str],
        children: Children,
        *,
        verdicts: FileQueue | None = None,
        entries: FileQueue | None = None,
        harness: Harness | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._env = {**env, COMPUTE_VARIABLE: config.name, SESSION_VARIABLE: SETUP_SESSION}
        self._children = children
        self._verdicts = verdicts
        self._entries = entries
        self._harness = harness
        self._changed = changed
        self._file = config.state / "boot.json"
        self._log = config.state / "boot.log"
        self._step_log = self._log
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False
        # Killed after the report was kept and before its outcome was noted: the report of that run stands.
        self._is_reported = verdicts is not None and verdicts.pending() > 0
        stored = read_json(self._file) or {}
        phase, setup = stored.get("phase"), stored.get("setup")
        self._progress = Progress(
            phase=phase if phase in {"ready", "failed"} else "booting",
            error=str(stored.get("error") or ""),
            checkout=stored.get("checkout") is True,
            setup=setup if isinstance(setup, int) else 0,
        )

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._progress

    def log_tail(self) -> str:
        """Return the last 8 KiB of the log of the step that it is in."""
        return tail(self._step_log)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do that takes time."""
        progress, config = self._progress, self._config
        checkout_left = config.checkout.kind != "none" and not progress.checkout
        left = checkout_left or progress.setup < len(config.setup) or self._harness is not None
        return progress.phase == "booting" and left

    def run(self) -> None:
        """Do what is left to do, and report the outcome."""
        if self._progress.phase != "booting":
            return
        try:
            self.prepare()
            for number in range(self._progress.setup, len(self._config.setup)):
                self._step(f"setup[{number}]", self._config.setup[number], lambda n=number: self._run_setup(n))
                self._save(setup=number + 1)
            if self._harness is not None:
                self._step_log = self._harness.log
                self._step("harness", f"start {self._harness.program} and wait until it is ready", self._harness.start)
            self._report("listening", "completed", "the workspace agent takes sessions")
        except StepFailed as e:
            self._fail(str(e))
            return
        except Exception as e:  # whatever it was, the workspace will not be ready, and says so
            self._fail(f"{type(e).__name__}: {e}")
            return
        self._conclude("ready", {"agent_version": __version__}, phase="ready", step="ready")

    def prepare(self) -> None:
        """Prepare the checkout, unless that is done. Raises :class:`StepFailed`."""
        config = self._config
        if self._progress.checkout:
            return

        def work() -> None:
            prepare_checkout(config.checkout, config.workspace, self._run)

        if config.checkout.kind == "none":
            work()
            return
        message = (
            f"clone {config.checkout.mirrored or config.checkout.url}"
            if config.checkout.kind == "clone"
            else "new empty repository"
        )
        self._step("checkout", message, work)
        self._save(checkout=True)

    def stop(self, grace: float) -> None:
        """End the step that runs, if any, and everything it started. Nothing is reported any more."""
        with self._lock:
            self._stopped = True
            running = self._running
        if self._harness is not None:
            self._harness.stop(grace)
        if running is not None:

            def find() -> list[Process]:
                table = process_table()
                roots = {running.pid}
                for process in table.values():
                    # One that it forked just before it died is nobody's descendant any more, but still of its session.
                    if process.session == running.pid and (process.parent == os.getpid() or self._is_ours(process)):
                        roots.add(process.pid)
                found = with_descendants(roots, table)
                return [table[pid] for pid in sorted(found) if pid in table and table[pid].state not in "ZX"]

            end_processes(find, grace)

    def _is_ours(self, process: Process) -> bool:
        return f"{COMPUTE_VARIABLE}={self._config.name}".encode() in environment_of(process.pid)

    def _step(self, name: str, message: str, work: Callable[[], None]) -> None:
        self._progress = self._progress._replace(step=name)
        self._report(name, "started", message)
        try:
            work()
        except StepFailed as e:
            self._report(name, "failed", str(e), self.log_tail())
            raise
        self._report(name, "completed", message)

    def _run_setup(self, number: int) -> None:
        command = self._config.setup[number]
        code = self._run_program(["sh", "-c", command], self._config.workspace, self._env, self._log)
        if code != 0:
            raise StepFailed(f"setup[{number}] {_ending(code)}: {command}")

    def _run(self, argv: list[str], folder: Path, env: dict[str, str]) -> str:
        """Run git and return its output; only what it says when it fails goes to the boot log."""
        answer = self._config.state / "git.out"
        answer.write_bytes(b"")
        code = self._run_program(argv, folder, {**env, COMPUTE_VARIABLE: self._config.name}, answer)
        with answer.open("rb") as file:
            output = file.read(1024 * 1024).decode("utf-8", "replace")
        if code != 0:
            with self._log.open("a", encoding="utf-8") as log_file:
                log_file.write(output)
            said = [line.strip() for line in output.splitlines() if line.strip()]
            # The first line says what is wrong; git's later ones give general advice.
            raise StepFailed(f"checkout: git {_ending(code)}: {said[0] if said else 'it said nothing'}")
        return output

    def _run_program(self, argv: list[str], folder: Path, env: dict[str, str], output: Path) -> int:
        with output.open("ab") as file:
            with self._lock:
                if self._stopped:
                    raise StepFailed("the workspace agent is stopping")
                try:
                    process = self._children.start(argv, folder=folder, env=env, output=file.fileno())
                except OSError as e:
                    raise StepFailed(f"cannot start {argv[0]!r} in {str(folder)!r}: {e.strerror}") from e
                self._running = process
            code = self._children.reap(process)
            with self._lock:
                self._running = None
                if self._stopped:
                    raise StepFailed("the workspace agent is stopping")
        return code

    def _report(self, step: str, status: str, message: str, detail: str | None = None) -> None:
        if self._entries is None or self._stopped:
            return
        log(f"boot: {step} {status}: {message}")
        entry: dict[str, Any] = {"step": step, "status": status, "message": _short(message), "timestamp": utc_now()}
        if detail:
            entry["detail"] = detail
        self._entries.put("boot-log", entry, durable=False)

    def _fail(self, error: str) -> None:
        if self._stopped:
            return  # told to stop, not failed: the next run of the agent goes on
        error = _short(error)
        log(f"boot: failed: {error}")
        body = {"error_message": error, "log_tail": self.log_tail()}
        self._conclude("provisioning-failed", body, phase="failed", error=error)

    def _conclude(self, callback: str, body: dict[str, Any], **outcome: str) -> None:
        """Note the outcome and report it, so that a kill at any moment neither loses the report nor doubles it."""

        def save() -> None:
            self._save(**outcome)

        unheard = callback == "ready" and not self._config.announces_ready
        if self._verdicts is None or self._is_reported or unheard:
            save()
        else:
            self._verdicts.put(callback, body, kept=save)
        self._changed()

    def _save(self, **changes: Any) -> None:
        self._progress = self._progress._replace(**changes)
        try:
            write_json(self._file, self._progress._asdict(), durable=True)
        except OSError as e:
            log(f"boot: cannot keep its state: {e.strerror}")


def _ending(code: int) -> str:
    return f"was killed by {signal_name(-code)}" if code < 0 else f"exited with {code}"


def _short(text: str) -> str:
    """Return ``text`` in one piece that the API takes: no NULs, no credentials, 1,000 characters at most."""
    text = without_credentials(text).replace("\0", "")
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
