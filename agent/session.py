"""One session: a program at work in the checkout, its output, and its end.

``session.json`` is written before the program is started and again, in one step, when it has ended. It is the record
of the session and, until the API has answered, the ``finished`` callback that is still to be delivered: so a kill at
any moment can neither start a session twice nor lose or double its end.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from agent.files import log, read_json, write_json
from agent.outbox import Lane, Message
from agent.output import OutputSpool
from agent.processes import (
    COMPUTE_VARIABLE,
    SESSION_VARIABLE,
    Children,
    Process,
    boot_id,
    end_processes,
    environment_of,
    look_at,
    process_table,
    signal_name,
    with_descendants,
)

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from agent.api import Answer

SUMMARY_CHARS = 500
DRAIN_SECONDS = 1.0  # how long a background child may keep the output open after the program has exited
LEFTOVER_GRACE_SECONDS = 1.0
_READ_BYTES = 64 * 1024
_LAST_READ_BYTES = 4 * 1024 * 1024
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Spec(NamedTuple):
    """What a session runs. The values of ``env`` may be secrets: they stay in memory.

    ``if_missing`` is what to say where there is no such program.
    """

    command: tuple[str, ...]
    env: dict[str, str]
    if_missing: str = ""

    @property
    def digest(self) -> str:
        """What tells one spec from another. The environment's values have no part: a repeat may bring renewed ones."""
        parts = [list(self.command), sorted(self.env)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Record(NamedTuple):
    """What is known of a session, as ``session.json`` holds it. ``digest`` is empty where the file was damaged."""

    digest: str = ""
    status: str = "starting"
    exit_code: int | None = None
    summary: str = ""
    error_message: str | None = None
    delivered: bool = False
    pid: int | None = None
    started: int | None = None
    boot: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the session has ended."""
        return self.status not in {"starting", "running"}


class Workplace(NamedTuple):
    """What the sessions of a workspace share. ``orphans`` finds the inherited children that can only be a session's."""

    name: str
    checkout: Path
    env: dict[str, str]
    children: Children
    orphans: Callable[[Session], set[int]]


class Session(Lane):
    """One session, and the lane of its output and end. ``folder`` is its own and exists."""

    def __init__(self, session_id: str, folder: Path, place: Workplace, notify: Callable[[], None]) -> None:
        self.session_id = session_id
        self.name = f"session {session_id}"
        self.settled = threading.Event()
        self.final = threading.Event()
        self._file = folder / "session.json"
        self._place = place
        self._notify = notify
        self._lock = threading.Lock()
        self._output = OutputSpool(folder, notify)
        self._record = _read_record(self._file)
        self._summary = LastLine()
        self._ending: str | None = None
        self._exited = False
        self._batch_end = 0
        self._process: subprocess.Popen[bytes] | None = None
        if self._record.is_final:
            self._output.end()
            self.final.set()
            if self._record.delivered:
                self.settled.set()

    @property
    def record(self) -> Record:
        """What is known of the session."""
        with self._lock:
            return self._record

    def view(self) -> dict[str, Any]:
        """Return what ``GET /sessions/{id}`` shows."""
        record = self.record
        return {
            "session_id": self.session_id,
            "status": record.status,
            "exit_code": record.exit_code,
            "summary": record.summary,
            "error_message": record.error_message,
            "output_bytes": self._output.size,
            "delivered": record.delivered,
        }

    def start(self, spec: Spec) -> None:
        """Start the program. One that cannot be started has failed; ``OSError``: nothing could be recorded."""
        write_json(self._file, Record(spec.digest)._asdict(), durable=True)
        self._record = Record(spec.digest)
        env = {
            **self._place.env,
            **spec.env,
            COMPUTE_VARIABLE: self._place.name,
            SESSION_VARIABLE: self.session_id,
        }
        read_end, write_end = os.pipe()
        try:
            process = self._place.children.start(
                list(spec.command), folder=self._place.checkout, env=env, output=write_end
            )
        except OSError as e:
            os.close(read_end)
            why = e.strerror or str(e)
            if not self._place.checkout.is_dir():
                why = f"the checkout {str(self._place.checkout)!r} is not there"
            elif e.errno == errno.ENOENT and spec.if_missing:
                why = f"{why}; {spec.if_missing}"
            code = 127 if e.errno == errno.ENOENT else 126
            self._end("failed", code, f"cannot start {spec.command[0][:200]!r}: {why}")
            return
        finally:
            os.close(write_end)
        self._process = process
        seen = look_at(process.pid)
        self._update(durable=False, status="running", pid=process.pid, started=seen and seen.started, boot=boot_id())
        threading.Thread(target=self._follow, args=(process, read_end), name=self.name, daemon=True).start()

    def recover(self) -> None:
        """Take over a session that an earlier run of the agent left running: end what is left of it, note its end."""
        self._output.end()
        end_processes(self.members, LEFTOVER_GRACE_SECONDS)
        self._summary.feed(self._output.last_text())
        self._end("interrupted", None, "the workspace agent was restarted while the session ran")

    def stop(self, grace: float, ending: str = "cancelled") -> None:
        """End every process of the session, TERM first and KILL after ``grace`` seconds; return when its end is noted.

        The session's status becomes ``ending``. Calls may overlap and be repeated: the program is told once, and the
        shortest grace counts.
        """
        with self._lock:
            if self._record.is_final:
                return
            first = self._ending is None
            if not self._exited:  # otherwise it has ended by itself, and is only being tidied up
                self._ending = self._ending or ending
        end_processes(self.members, grace, terminate=first)
        self.final.wait(DRAIN_SECONDS + LEFTOVER_GRACE_SECONDS + 15)

    def members(self) -> list[Process]:
        """Return the processes of this session that are alive, the eldest first: its group, all below, all marked."""
        table = process_table()
        record, process = self.record, self._process
        roots: set[int] = set()
        if process is not None:
            # The program is our child and not reaped before all of this is gone, so its number is nobody else's.
            pid = process.pid
            roots |= {p.pid for p in table.values() if pid in {p.pid, p.session, p.group}}
            roots |= self._place.orphans(self)
        elif record.pid is not None and record.boot == boot_id():
            leader = table.get(record.pid)
            if leader is not None and leader.started == record.started:
                roots |= {p.pid for p in table.values() if record.pid in {p.pid, p.session, p.group}}
        marks = {
            f"{COMPUTE_VARIABLE}={self._place.name}".encode(),
            f"{SESSION_VARIABLE}={self.session_id}".encode(),
        }
        roots |= {pid for pid in table if marks <= environment_of(pid)}
        found = with_descendants(roots, table) - {os.getpid()}
        return sorted((table[pid] for pid in found if table[pid].state not in "ZX"), key=lambda p: (p.started, p.pid))

    def next(self) -> Message | float | None:
        """See :meth:`Lane.next`: all output first, then the end."""
        record = self.record  # read first: when it is final, no more output comes
        if record.delivered:
            return None
        found = self._output.batch()
        if isinstance(found, tuple):
            self._batch_end = found[0]
            return Message(f"sessions/{self.session_id}/output", found[1])
        if found is not None or not record.is_final:
            return found
        body = {
            "status": record.status,
            "exit_code": record.exit_code,
            "summary": record.summary,
            "error_message": record.error_message,
        }
        return Message(f"sessions/{self.session_id}/finished", json.dumps(body).encode())

    def settle(self, message: Message, answer: Answer) -> None:
        """See :meth:`Lane.settle`. An API that misses earlier output gets it again, if it is still there."""
        if message.path.endswith("/finished"):
            self._update(durable=False, delivered=True)
            self._output.clear()
            self.settled.set()
            return
        expected = answer.body.get("expected_offset")
        if answer.status == 409 and isinstance(expected, int) and self._output.rewind(expected):
            return
        self._output.acknowledge(self._batch_end)

    def pending(self) -> int:
        """See :meth:`Lane.pending`."""
        record = self.record
        return (not self._output.is_delivered) + (record.is_final and not record.delivered)

    def ended(self) -> bool:
        """See :meth:`Lane.ended`."""
        return self.record.delivered

    def _follow(self, process: subprocess.Popen[bytes], output: int) -> None:
        """Read the output until the program has ended, end what it left behind, and note how it ended."""
        try:
            self._read(process, output)
        except Exception as e:  # the session's end must be noted whatever happens here
            log(f"{self.name}: {type(e).__name__}: {e}")
            end_processes(self.members, 0)
        self._process = None  # from here on its number may be given to another process
        code = self._place.children.reap(process)
        self._place.children.reap_orphans()
        self._output.end()
        status, error = "completed", None
        if code < 0:
            status, error = "failed", f"killed by {signal_name(-code)}"
        elif code > 0:
            status, error = "failed", f"exited with {code}"
        with self._lock:
            ending = self._ending
        if ending == "cancelled":
            status, error = "cancelled", "cancelled"
        elif ending == "interrupted":
            status, error = "interrupted", "the workspace agent was stopped while the session ran"
        self._end(status, code if code >= 0 else 128 - code, error)

    def _read(self, process: subprocess.Popen[bytes], output: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def take(limit: int) -> int:
            """Read what is there; return how much: 0 where no more will come, -1 where there is nothing now."""
            try:
                data = os.read(output, limit)
            except BlockingIOError:
                return -1
            self._add(decoder.decode(data, final=not data))
            return len(data)

        os.set_blocking(output, False)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, output)
            exited = os.pidfd_open(process.pid)
            opened.callback(os.close, exited)
            poller = select.poll()
            poller.register(exited, select.POLLIN)
            drained_at: float | None = None
            is_open = True
            while is_open or drained_at is None:
                waits = [] if drained_at is None else [drained_at - time.monotonic()]
                if is_open and drained_at is None and self._output.is_full:
                    # The API is away and the disk has taken enough: the program waits, as on any full pipe.
                    waits.append(0.5)
                    with contextlib.suppress(KeyError):
                        poller.unregister(output)
                elif is_open:
                    poller.register(output, select.POLLIN)
                ready = {fd for fd, _ in poller.poll(max(0.0, min(waits)) * 1000 if waits else None)}
                if output in ready and take(_READ_BYTES) == 0:
                    is_open = False
                    poller.unregister(output)
                if exited in ready:
                    with self._lock:
                        self._exited = True
                    drained_at = time.monotonic() + DRAIN_SECONDS
                    poller.unregister(exited)
                if drained_at is not None and time.monotonic() >= drained_at:
                    break
            end_processes(self.members, LEFTOVER_GRACE_SECONDS)
            left = _LAST_READ_BYTES
            while is_open and left > 0 and (count := take(_READ_BYTES)) > 0:
                left -= count
            self._add(decoder.decode(b"", final=True))

    def _add(self, text: str) -> None:
        self._summary.feed(text)
        self._output.append(text)

    def _end(self, status: str, exit_code: int | None, error: str | None) -> None:
        self._output.end()
        self._update(durable=True, status=status, exit_code=exit_code, summary=self._summary.text, error_message=error)
        self.final.set()
        self._notify()

    def _update(self, *, durable: bool, **changes: Any) -> None:
        """Change the record, on disk first: nobody may see an end that a restart would forget."""
        with self._lock:
            record = self._record._replace(**changes)
            try:
                write_json(self._file, record._asdict(), durable=durable)
            except OSError as e:
                log(f"{self.name}: cannot keep its record: {e.strerror}")
            self._record = record


class LastLine:
    """Finds the last line that is not blank in a text that comes in pieces."""

    def __init__(self) -> None:
        self._open = ""
        self._last = ""

    def feed(self, text: str) -> None:
        """Add a piece."""
        *lines, self._open = re.split(r"[\r\n]+", self._open + text)
        self._open = self._open[: 8 * SUMMARY_CHARS]
        for line in reversed(lines):
            if cleaned := _clean(line):
                self._last = cleaned
                break

    @property
    def text(self) -> str:
        """The line, without control characters, 500 characters at most."""
        return _clean(self._open) or self._last


def _clean(line: str) -> str:
    return _CONTROL.sub("", line).strip()[:SUMMARY_CHARS]


def _read_record(path: Path) -> Record:
    """Read ``session.json``. A damaged one tells that there was a session, so that it is not run again."""
    stored = read_json(path)
    if stored is None:
        return Record()
    try:
        record = Record(**stored)
    except TypeError:
        return Record()
    texts = (record.digest, record.status, record.summary, record.boot)
    return record if all(isinstance(text, str) for text in texts) else Record()  # pyright: ignore[reportUnnecessaryIsInstance]
