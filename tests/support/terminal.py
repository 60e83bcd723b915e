"""A terminal with a person at it: the command runs on a pseudo-terminal, and what it shows is read off the screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte


class Terminal:
    """A command in the foreground of a terminal of its own."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        columns: int = 100,
        rows: int = 40,
        overrides: Mapping[str, str] | None = None,
        watched: bool = True,
    ) -> None:
        """Start it; ``overrides`` come last into its environment, and what is not watched is only collected."""
        self._is_watched = watched
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.mode = set(self.screen.mode)
        self.raw = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.attributes = termios.tcgetattr(self._master)
        self.process = subprocess.Popen(
            # Who leads a session without a terminal and opens one gets it as the controlling one.
            ["/bin/sh", "-c", 'exec "$@" <>"$0"', os.ttyname(slave), *argv],
            cwd=cwd,
            env={
                **{name: value for name, value in env.items() if name not in {"CI", "NO_COLOR"}},
                "TERM": "xterm-256color",
                **(overrides or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:
                piece = b""
            with self._changed:
                if piece:
                    self.raw += piece
                    if self._is_watched:
                        self._stream.feed(piece)
                else:
                    self._ended = True
                self._changed.notify_all()
            if not piece:
                return

    def attributes_now(self) -> list[object]:
        """Return the terminal's settings."""
        return termios.tcgetattr(self._master)

    @property
    def lines(self) -> list[str]:
        """What is on the screen and what has scrolled off it, without the empty lines at the end."""
        with self._changed:
            history = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
            return [line.rstrip() for line in "\n".join([*history, *self.screen.display]).rstrip().splitlines()]

    @property
    def text(self) -> str:
        """The lines in one text."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Return the match of ``pattern`` in what is seen, as soon as it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or re.search(pattern, self.text), timeout)
            found = re.search(pattern, self.text)
        assert found, f"{pattern!r} is not in:\n{self.text}"
        return found

    def type(self, keys: bytes) -> None:
        """Press keys; Ctrl-C (``b"\\x03"``) becomes SIGINT to everything in the foreground, by the terminal itself."""
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size, which tells the foreground by SIGWINCH."""
        with self._changed:
            self.screen.resize(rows, columns)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self, timeout: float = 60) -> int:
        """Wait for the command's end and return its exit code; the terminal has to be as it was."""
        code = self.process.wait(timeout)
        end = time.monotonic() + 10
        with self._changed:
            self._changed.wait_for(lambda: self._ended, max(end - time.monotonic(), 0))
        self._reader.join(10)
        return code

    def hang_up(self) -> None:
        """Close the window: the kernel tells the foreground by SIGHUP, and nothing can be written to it any more."""
        master, self._master = self._master, -1
        os.close(master)

    def close(self) -> None:
        """Take the window away."""
        if self._master >= 0:
            os.close(self._master)
