"""Lines at the end of a terminal that are written anew in place, while what is printed scrolls above them.

Between two writes the cursor rests at the beginning of the first of these lines, so that erasing to the end of the
screen takes exactly them away, however the terminal was resized and its lines wrapped anew meanwhile. Nothing of the
terminal is changed for longer than one write: there is nothing to put back when the program ends, in whatever way.
"""

import os
import re
from collections.abc import Sequence

_ERASE = "\r\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_RESET = "\x1b[0m"
_STYLE = re.compile(r"\x1b\[[0-9;:]*m")
_UNPRINTED = re.compile(
    r"(?P<kept>\x1b\[[0-9;:]*m)"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # strings: titles, links, and what only some terminals know
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # every other sequence: it would move the cursor, or set a mode
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MAX_OPEN_CHARS = 16_384


def tame(line: str) -> str:
    """Return a line as it may be printed above others: with its colours, but nothing that moves the cursor.

    Of what a carriage return would have overwritten, the last is kept: of a progress bar, its end.
    """
    line = line.rstrip("\r").rpartition("\r")[2]
    return _UNPRINTED.sub(lambda found: found["kept"] or "", line)


class OutputLines:
    """Cuts a stream of text into lines that may be printed above others; holds back the one that has not ended."""

    def __init__(self) -> None:
        self.open = ""
        self._style = ""

    def take(self, text: str) -> str:
        """Return the lines that ``text`` completes, each with its newline."""
        whole, newline, rest = (self.open + text).rpartition("\n")
        self.open = rest
        if len(rest) > _MAX_OPEN_CHARS:  # the terminal would have wrapped it long ago
            whole, newline, self.open = whole + newline + rest, "\n", ""
        if not newline:
            return ""
        if _CONTROL.search(whole):
            whole = "\n".join(map(tame, whole.split("\n")))
        return self._styled(whole)

    def rest(self) -> str:
        """Return the line that has not ended, as one that has; empty where there is none."""
        return self.take("\n") if self.open else ""

    def _styled(self, lines: str) -> str:
        """Return lines in the colour that the ones before them left on, which goes off behind them."""
        before = self._style
        for style in _STYLE.findall(lines) if "\x1b" in lines else ():
            self._style = "" if style in {"\x1b[m", _RESET} else (self._style + style)[-200:]
        return f"{before}{lines}{_RESET if before or self._style else ''}\n"


class Screen:
    """The terminal at ``fd``. Writing may raise ``OSError``, as where the terminal is gone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: Sequence[str] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self._fd)
        except OSError:
            return 80, 24
        return max(columns, 1), max(rows, 1)

    def write(self, above: str = "", lines: Sequence[str] | None = None) -> None:
        """Print ``above`` (whole lines), and below it ``lines`` in place of those before (None: those again).

        Lines are clipped at the terminal's edge; where it has too few rows, the last ones are shown.
        """
        if lines is not None:
            self._lines = lines
        elif not above:
            return
        shown = self._lines[-max(self.size[1] - 1, 1) :] if self._is_in_front else ()
        _write_all(self._fd, (_ERASE + above + _drawn(shown)).encode("utf-8", "replace"))

    @property
    def _is_in_front(self) -> bool:
        """Whether the terminal is ours now, and not a shell's that has us in the background."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # it is no controlling terminal of ours, so nobody shares it with us
            return True


def _drawn(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    return f"{_NO_WRAP}{chr(10).join(lines)}{_WRAP}\r{up}"


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
