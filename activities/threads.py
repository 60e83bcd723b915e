"""Blocking calls that may take for ever: they neither take a thread from the pool nor keep the program from ending."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T], *, undo: Callable[[T], None] | None = None) -> T:
    """Run ``work`` in a thread of its own and return its result; ``undo`` the result if nobody waits for it any more.

    A caller that is cancelled goes on at once, and the thread with it to the end of ``work``.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if not future.cancelled():
            future.set_result(result)
        elif undo:
            undo(result)

    def fail(error: BaseException) -> None:
        if not future.cancelled():
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as e:  # handed to the waiting coroutine
            _hand_over(loop, lambda error=e: fail(error))
            return
        if not _hand_over(loop, lambda: succeed(result)) and undo:
            undo(result)

    threading.Thread(target=run, name="waiting", daemon=True).start()
    return await future


def _hand_over(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> bool:
    """Call back in the loop; False where it is closed, so that nobody waits."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True
