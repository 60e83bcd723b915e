"""The ``taskrunner`` command as its users run it: a process of its own, on a home of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.home import StackRecord

PROGRAM = [sys.executable, "-m", "cli.main"]
ROOT = Path(__file__).parents[2]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of who was started in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Finished:
    """A command that has ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.raw = out
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    @property
    def task_id(self) -> str:
        """The task that a run announced."""
        found = re.search(r"^Task (\S+) on", self.err, re.MULTILINE)
        assert found, self
        return found[1]


class Running:
    """A command that runs; its output is collected while it does, and can be waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._changed = threading.Condition()
        self._text = {"out": b"", "err": b""}
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream) -> None:
        while piece := os.read(stream.fileno(), 65536):
            with self._changed:
                self._text[name] += piece
                self._changed.notify_all()
        with self._changed:
            self._text[name + "_ended"] = b"1"
            self._changed.notify_all()
        stream.close()

    def wait_for(self, pattern: str, *, stream: str, timeout: float = 60) -> re.Match[str]:
        """Return the match of ``pattern`` in what it says on ``stream`` (out or err) as soon as it is there."""
        with self._changed:
            self._changed.wait_for(
                lambda: re.search(pattern, self._plain(stream)) or stream + "_ended" in self._text, timeout
            )
            found = re.search(pattern, self._plain(stream))
        assert found, f"{pattern!r} is not in:\n{self._plain('out')}\n--- stderr\n{self._plain('err')}"
        return found

    def _plain(self, stream: str) -> str:
        return ESCAPES.sub("", self._text[stream].decode("utf-8", "replace"))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 60) -> Finished:
        """Wait for its end."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        return Finished(code, self._text["out"], self._text["err"])


class Cli:
    """The command with one home and environment."""

    def __init__(self, home: Path, cwd: Path, **env: str) -> None:
        self.home = home
        self.cwd = cwd
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKRUNNER_", "TEMPORAL_"))}
        kept.pop("PROVISION_TIMEOUT_SECONDS", None)
        self.env = {**kept, "PYTHONPATH": str(ROOT), "TASKRUNNER_HOME": str(home), **env}

    def start(self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Running:
        """Start it in a session of its own, as a terminal would."""
        process = subprocess.Popen(
            [*PROGRAM, *args],
            cwd=cwd or self.cwd,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return Running(process)

    def run(
        self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 90
    ) -> Finished:
        """Run it to its end."""
        return self.start(*args, cwd=cwd, env=env).end(timeout)

    def json(self, *args: str) -> dict:
        """Run it with ``--json`` and return what it prints."""
        finished = self.run(*args, "--json")
        assert finished.code == 0, finished
        return json.loads(finished.out)

    @contextmanager
    def dev(self, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
        """The stack in the foreground, on free ports, for as long as the context lasts."""
        running = self.start("dev", *(args or ("--port", "0", "--temporal-port", "0", "--ui-port", "0")), env=env)
        try:
            running.wait_for("is ready after", stream="out")
            yield running
        finally:
            if running.process.poll() is None:
                running.signal(signal.SIGTERM)
            running.end()

    def processes(self) -> dict[int, str]:
        """Return every process that belongs to this home, by its environment, working folder or command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                environ = (entry / "environ").read_bytes()
                folder = str((entry / "cwd").readlink())
            except OSError:
                continue
            home = str(self.home)
            is_ours = home in command or folder.startswith(home) or f"={home}".encode() in environ
            if is_ours and command:  # a zombie has none
                found[int(entry.name)] = command
        return found

    def wait_until_gone(self, timeout: float = 20) -> dict[int, str]:
        """Return what still runs of this home after at most ``timeout`` seconds (nothing announces that to a test)."""
        end = time.monotonic() + timeout
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return left


@contextmanager
def private_cli(**env: str) -> Iterator[Cli]:
    """A command with a home of its own.

    The home is not below pytest's folders: those are closed to PostgreSQL's user whenever another pytest starts.
    """
    with TemporaryDirectory(prefix="tr-cli-") as folder:
        cwd = Path(folder, "cwd")
        cwd.mkdir()
        cli = Cli(Path(folder, "home"), cwd, **env)
        yield cli
        left = cli.wait_until_gone(10)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, left


def is_one_line(finished: Finished) -> bool:
    """Tell whether an error was told as promised: one line on stderr, no traceback, nothing on stdout."""
    lines = finished.err.strip().splitlines()
    return (
        len(lines) == 1
        and lines[0].startswith("error: ")
        and "Traceback" not in finished.err
        and not finished.out.strip()
    )


def dead_stack(host_id: str = "here") -> StackRecord:
    """Return what a home says of a stack that is no more: its process is gone, and nothing answers at its address."""
    return StackRecord(
        pid=2**22 + 1,  # more than Linux gives
        started=1,
        while_used=False,
        api_url="http://127.0.0.1:1",
        ui_url="http://127.0.0.1:2",
        temporal_address="127.0.0.1:3",
        database_url="postgresql://",
        host_id=host_id,
    )
