"""Interrupts that are not lost while the program waits in blocking calls, or loads what handles them."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TWICE_SECONDS = 0.5
"""Within which a second SIGTERM is the same wish as the first: ``timeout`` sends it to us and to our process group."""


def signals_to_leave() -> list[signal.Signals]:
    """Return the signals that tell us to leave, but those that we were told to ignore, as by nohup."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]


def note_signals_to_leave() -> list[signal.Signals]:
    """Do no more, from here on, than to note these signals in the list that is returned, for who handles them next."""
    noted: list[signal.Signals] = []
    for number in signals_to_leave():
        signal.signal(number, lambda number, _: noted.append(signal.Signals(number)))
    return noted


@contextmanager
def interrupts_kept() -> Generator[None]:
    """Raise ``KeyboardInterrupt`` for a SIGINT, at the latest when the context ends.

    Python drops an exception that is raised in a finalizer, and a ``KeyboardInterrupt`` may come in one. For the main
    thread, and where SIGINT has Python's own handler; a program that was told to ignore it goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
