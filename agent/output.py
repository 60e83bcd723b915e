"""A session's output between the process that writes it and the API that takes it.

It is kept in files of a few megabytes, named by the offset of their first byte, until the API has it; the offset up to
which the API has it stands in a file of its own. Offsets count bytes of the decoded text in UTF-8.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Callable

from agent.files import log, sync_folder, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

BATCH_BYTES = 128 * 1024
FLUSH_SECONDS = 0.04  # between two batches: each is to leave at most 50 ms after its first byte came
MAX_BODY_BYTES = 240 * 1024  # the API takes 256 KiB; control characters grow sixfold in JSON
MAX_BACKLOG_BYTES = 256 * 1024 * 1024  # more than this waits in the process's pipe, so a full disk is not our doing
_SEGMENT_BYTES = 4 * 1024 * 1024
_SEGMENT_NAME = re.compile(r"output-([0-9]{19})")


def _keep_length(error: UnicodeError) -> tuple[str, int]:
    """Replace damaged bytes one by one, so that every offset stays true."""
    assert isinstance(error, UnicodeDecodeError)  # only decoders call this
    return "?" * (error.end - error.start), error.end


codecs.register_error("taskrunner-keep-length", _keep_length)
_decoder = codecs.getincrementaldecoder("utf-8")


class OutputSpool:
    """One session's output, in ``folder``; adopts what an earlier run of the agent left there.

    One thread appends, one delivers; ``notify`` is called when the one who delivers has to look again.
    """

    def __init__(self, folder: Path, notify: Callable[[], None]) -> None:
        self._folder = folder
        self._notify = notify
        self._lock = threading.Lock()
        self._ended = False
        self._taken_at = -math.inf
        self._segments: list[tuple[int, Path]] = sorted(
            (int(match.group(1)), path)
            for path in folder.iterdir()
            if (match := _SEGMENT_NAME.fullmatch(path.name)) is not None
        )
        self._acknowledged = _read_number(folder / "acknowledged")
        self._size = self._acknowledged
        if self._segments:
            start, path = self._segments[-1]
            self._size = max(self._size, start + path.stat().st_size)
        self._writer: int | None = None
        self._writer_room = 0
        self._lost = 0
        self._rewound: int = -1

    @property
    def size(self) -> int:
        """How many bytes of output there have been."""
        with self._lock:
            return self._size

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the API that the process had better wait too."""
        with self._lock:
            return self._size - self._acknowledged >= MAX_BACKLOG_BYTES

    @property
    def is_delivered(self) -> bool:
        """Whether the API has all that there is."""
        with self._lock:
            return self._size == self._acknowledged

    def append(self, text: str) -> None:
        """Add output. What a full disk does not take is left out, and a line in the output says how much."""
        if not text:
            return
        with self._lock:
            if self._lost:
                text = f"\n[{self._lost} bytes of output are lost: the disk was full]\n{text}"
            data = text.encode("utf-8", "replace")
            before = self._size - self._acknowledged
            try:
                self._write(data)
            except OSError as e:
                if not self._lost:
                    log(f"cannot keep output: {e.strerror}")
                self._lost += len(data)
                return
            self._lost = 0
            wakes = before == 0 or before < BATCH_BYTES <= before + len(data)
        if wakes:
            self._notify()

    def end(self) -> None:
        """Say that nothing more comes; what there is survives a crash of the machine from here on."""
        with self._lock:
            self._ended = True
            try:
                if self._writer is not None:
                    os.fsync(self._writer)
                    os.close(self._writer)
                    sync_folder(self._folder)
            except OSError as e:
                log(f"cannot keep output: {e.strerror}")
            self._writer = None
        self._notify()

    def batch(self) -> tuple[int, bytes] | float | None:
        """Return the end and the JSON of the batch to send now, or the seconds until there is one, or None."""
        with self._lock:
            while self._acknowledged < self._size:
                backlog = self._size - self._acknowledged
                wait = self._taken_at + FLUSH_SECONDS - time.monotonic()
                if backlog < BATCH_BYTES and not self._ended and wait > 0:
                    return wait
                text = self._read()
                if text:
                    return _encode(self._acknowledged, text)
                # What a crash of the machine took from the disk cannot be sent: go on behind it.
                behind = [start for start, _ in self._segments if start > self._acknowledged]
                self._acknowledged = behind[0] if behind else self._size
            return None

    def acknowledge(self, end: int) -> None:
        """Note that the API has everything before ``end``."""
        with self._lock:
            self._acknowledged = end
            self._taken_at = time.monotonic()
            self._keep_acknowledged()
            while self._segments:
                following = self._segments[1][0] if len(self._segments) > 1 else self._size
                writing = len(self._segments) == 1 and not self._ended
                if following > end or writing:
                    break
                self._segments.pop(0)[1].unlink(missing_ok=True)

    def rewind(self, expected: int) -> bool:
        """Go back to the byte that the API says it expects; False if it is gone, or was asked for before."""
        with self._lock:
            kept = self._segments[0][0] if self._segments else self._size
            if not kept <= expected < self._acknowledged or expected == self._rewound:
                return False
            self._rewound = self._acknowledged = expected
            self._keep_acknowledged()
            return True

    def clear(self) -> None:
        """Remove what is kept: the API has it all, or will never take it."""
        with self._lock:
            for _, path in self._segments:
                path.unlink(missing_ok=True)
            self._segments.clear()

    def last_text(self) -> str:
        """Return the end of what is still kept."""
        with self._lock:
            try:
                return self._segments[-1][1].read_bytes()[-64 * 1024 :].decode("utf-8", "replace")
            except (IndexError, OSError):
                return ""

    def _write(self, data: bytes) -> None:
        if self._writer is None or self._writer_room <= 0:
            if self._writer is not None:
                os.close(self._writer)
                self._writer = None
            path = self._folder / f"output-{self._size:019}"
            self._writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._segments.append((self._size, path))
            self._writer_room = _SEGMENT_BYTES
        written = 0
        try:
            while written < len(data):
                written += os.write(self._writer, data[written:])
        except OSError:
            # A part of it would shift every later offset.
            os.ftruncate(self._writer, self._size - self._segments[-1][0])
            raise
        self._size += written
        self._writer_room -= written

    def _read(self) -> str:
        """Return text from where the API is, a batch at most, cut at a character; empty if the disk has lost it."""
        position = self._acknowledged
        for start, path in reversed(self._segments):
            if start <= position:
                try:
                    with path.open("rb") as file:
                        file.seek(position - start)
                        data = file.read(BATCH_BYTES)
                except OSError:
                    return ""
                return _decoder("taskrunner-keep-length").decode(data, final=len(data) < BATCH_BYTES)
        return ""

    def _keep_acknowledged(self) -> None:
        try:
            write_atomically(self._folder / "acknowledged", b"%d" % self._acknowledged, durable=False)
        except OSError as e:
            log(f"cannot keep what is delivered: {e.strerror}")


def _encode(offset: int, text: str) -> tuple[int, bytes]:
    while True:
        body = json.dumps({"offset": offset, "chunks": [text]}, ensure_ascii=False, separators=(",", ":")).encode()
        if len(body) <= MAX_BODY_BYTES:
            return offset + len(text.encode()), body
        text = text[: len(text) // 2]


def _read_number(path: Path) -> int:
    try:
        text = path.read_text("ascii")
        return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else 0
    except (OSError, ValueError):
        return 0
