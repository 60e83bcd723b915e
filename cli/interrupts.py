"""Interrupts that are not lost while the program waits in blocking calls."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


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
