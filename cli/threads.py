"""Blocking calls that must not keep the program from ending."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(work: Callable[[], _T]) -> _T:
    """Run blocking ``work`` without keeping the program from ending while it blocks."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def deliver(value: _T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # pyright: ignore[reportArgumentType]

    def call() -> None:
        try:
            value, error = work(), None
        except BaseException as e:
            value, error = None, e
        loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=call, daemon=True).start()
    return await result
