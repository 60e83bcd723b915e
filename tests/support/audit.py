"""What Python itself reports of a thread's calls: https://docs.python.org/3/library/audit_events.html."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_listening: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _listening and (heard := _listening.get(threading.get_ident())) is not None:
        heard.append((event, args))


sys.addaudithook(_hear)  # for good: a hook cannot be taken away


@contextlib.contextmanager
def audit_of_this_thread() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Yield what this thread does, filled while the context lasts: audit events with their arguments."""
    heard = _listening[threading.get_ident()] = []
    try:
        yield heard
    finally:
        del _listening[threading.get_ident()]
