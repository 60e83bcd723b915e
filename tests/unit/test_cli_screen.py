"""The live list as a terminal shows it, whatever is printed above it and however the window changes."""

import os
import pty
import re
import struct
import termios
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fcntl import ioctl

import pyte
import pytest

from cli.display import Display, Step, step_lines
from cli.screen import OutputLines, Screen, tame
from messages.statuses import TaskStatus, TaskStep
from messages.tasks import TaskProgress

BEGUN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Window:
    """A pseudo-terminal, and what is seen on it."""

    def __init__(self) -> None:
        self._master, self.fd = pty.openpty()
        self.seen = pyte.Screen(20, 6)
        self._stream = pyte.ByteStream(self.seen)
        self._reads = 0
        self.resize(20, 6)

    def resize(self, columns: int, rows: int) -> None:
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.seen.resize(rows, columns)

    def lines(self) -> list[str]:
        self._reads += 1
        mark = f"read {self._reads}"
        os.write(self.fd, f"\x1b]2;{mark}\x07".encode())  # the kernel delivers when it likes
        while self.seen.title != mark:
            self._stream.feed(os.read(self._master, 65536))
        return [line.rstrip() for line in "\n".join(self.seen.display).rstrip().splitlines()]

    def close(self) -> None:
        os.close(self._master)
        os.close(self.fd)


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window()
    yield window
    window.close()


def test_what_is_printed_stays_above_lines_that_change_in_place(window: Window) -> None:
    screen = Screen(window.fd)
    screen.write("first\n", ["a 1", "b 1"])
    assert window.lines() == ["first", "a 1", "b 1"]
    screen.write("second\nthird\n", ["a 2"])
    assert window.lines() == ["first", "second", "third", "a 2"]
    screen.write("fourth\n")
    assert window.lines() == ["first", "second", "third", "fourth", "a 2"]
    screen.write("", [])
    assert window.lines() == ["first", "second", "third", "fourth"]
    assert (window.seen.cursor.x, window.seen.cursor.y) == (0, 4)
    assert not window.seen.cursor.hidden
    assert pyte.modes.DECAWM in window.seen.mode


@pytest.mark.parametrize(("columns", "rows"), [(10, 6), (60, 6), (1, 6), (3, 12), (60, 12)])
def test_a_window_of_another_size_shows_no_line_twice(window: Window, columns: int, rows: int) -> None:
    screen = Screen(window.fd)
    before = [f"{n} {'x' * 30}" for n in range(4)]
    screen.write("above\n", before)
    assert window.lines() == ["above", *(line[:20] for line in before)]
    window.resize(columns, rows)
    after = [f"{n} {'y' * 70}"[:columns] for n in range(4)]
    screen.write("", after)
    assert window.lines()[1:] == after
    screen.write("", [])
    window.lines()
    screen.write("below\n", [])
    assert "y" not in "".join(window.lines())


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_window_with_too_few_rows_shows_the_last_lines(window: Window, rows: int) -> None:
    """The cursor cannot go up to what has left the screen, so no more is drawn than fits."""
    window.resize(20, rows)
    screen = Screen(window.fd)
    for round_ in range(3):
        screen.write(f"above {round_}\n", [f"{round_}.{n}" for n in range(4)])
    fits = max(rows - 1, 1)
    assert window.lines()[-fits:] == [f"2.{n}" for n in range(4)][-fits:]
    screen.write("", [])
    assert "".join(window.lines()).count(".") == 0


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[38:5:1mred", "\x1b[38:5:1mred"),
        ("a\x1b[2J\x1b[H\x1b[?1049h\x1b[10Ab", "ab"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1b7a\x1b8b\x1bMc\x1b(Bd\x9b2Je", "abcde"),
        ("a\x1b", "a"),
        ("10%\r20%\r30%", "30%"),
        ("done\r", "done"),
        ("bell\x07\x08\x00\x7f", "bell"),
        ("tab\there", "tab\there"),
        ("grüße 漢字", "grüße 漢字"),
    ],
)
def test_lines_of_an_agent_keep_their_colours_and_move_no_cursor(line: str, kept: str) -> None:
    assert tame(line) == kept


def test_a_line_is_printed_when_it_has_ended() -> None:
    lines = OutputLines()
    assert lines.take("one\ntw") == "one\n"
    assert lines.open == "tw"
    assert lines.take("o") == ""
    assert lines.take("\r\nthree") == "two\n"
    assert lines.rest() == "three\n"
    assert (lines.open, lines.rest()) == ("", "")


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    lines = OutputLines()
    assert len(lines.take("x" * 20_000)) == 20_001
    assert lines.open == ""


def test_a_colour_that_an_agent_leaves_on_colours_nothing_of_ours() -> None:
    lines = OutputLines()
    assert lines.take("\x1b[31mred\n") == "\x1b[31mred\x1b[0m\n"
    assert lines.take("still\n") == "\x1b[31mstill\x1b[0m\n"
    assert lines.take("off\x1b[0m\n") == "\x1b[31moff\x1b[0m\x1b[0m\n"
    assert lines.take("plain\n") == "plain\n"


def test_much_output_is_taken_faster_than_a_terminal_shows_it() -> None:
    lines = OutputLines()
    plain, coloured = "a line of output\n" * 4096, "\x1b[32ma line\x1b[0m of output\n" * 256
    began = time.perf_counter()
    for _ in range(150):
        lines.take(plain)
        lines.take(coloured)
    assert time.perf_counter() - began < 2  # 11 MB: some 0.2 s where nothing else runs


def test_without_a_list_a_reason_to_try_again_is_one_line_however_often_it_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(as_json=True)
    for reason in ("no\x1b[2Janswer", "broken off", "no\x1b[2Janswer"):
        display.retrying(reason)
    assert capsys.readouterr().err == "  trying again: no\\x1b[2Janswer\n  trying again: broken off\n"


def test_without_a_list_a_step_says_when_it_began_and_how_long_after_the_submission(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(as_json=True)
    display.start(BEGUN, lambda _: None)
    display.step("preflight", BEGUN + timedelta(seconds=61))
    at = (BEGUN + timedelta(seconds=61)).astimezone().strftime("%H:%M:%S")
    assert capsys.readouterr().err == f"  {at}  after  1m01s  preflight\n"


def test_steps_show_their_times_and_the_last_one_what_it_waits_for() -> None:
    waiting = TaskProgress(
        status=TaskStatus.RUNNING,
        step=TaskStep.WAITING_FOR_READY,
        waiting_for="the callback of tr-w-1-1",
        since=BEGUN,
        until=BEGUN + timedelta(minutes=10),
        last_error="no\x1b[2Janswer",
        workspace_id="w-1",
        attempt=1,
    )
    steps = [
        Step("preflight", BEGUN),
        Step("waiting for ready", BEGUN + timedelta(seconds=1), waiting, "Pulling 3 of 7 layers", "no host"),
    ]
    now = BEGUN + timedelta(seconds=61)
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in step_lines(steps, now, 80)]
    until = (BEGUN + timedelta(minutes=10)).astimezone().strftime("%H:%M:%S")
    assert plain[:2] == ["  preflight          took  1.00s", "  waiting for ready   for  1m00s"]
    assert re.fullmatch(rf"    waits until .*{until} \(8m59s left\) for the callback of tr-w-1-1", plain[2])
    assert plain[3:] == ["    last error: no\\x1b[2Janswer", "    Pulling 3 of 7 layers", "    trying again: no host"]
    ended = step_lines(steps, now, 80, has_ended=True)
    assert ended == [plain[0], "  waiting for ready  took  1m00s"]
    for width in (1, 5, 20):
        assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= width for line in step_lines(steps, now, width))
    assert step_lines([], now, 80) == []
