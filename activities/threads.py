"""Blocking calls beside the event loop, and what becomes of them when their caller is cancelled."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def until_done(work: "asyncio.Future[T] | asyncio.Task[T]") -> T:
    """Wait for ``work`` to its end even if the caller is cancelled meanwhile; the cancellation follows then."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as e:
            cancelled = e
    if cancelled is not None:
        with contextlib.suppress(BaseException):
            work.result()
        raise cancelled
    return work.result()


async def to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what changes files in a thread; a cancellation follows when it is done, because no thread can be stopped."""
    return await until_done(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))


async def no_longer_than(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` does. Raises ``TimeoutError`` after so many seconds.

    Unlike ``asyncio.timeout`` it does not wait for a thread that cannot be stopped: ``work`` goes on, for nobody.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to look at it
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()


async def in_daemon_thread(work: Callable[[], T], *, undo: Callable[[T], None] | None = None) -> T:
    """Run ``work`` in a thread of its own and return its result; ``undo`` the result if nobody waits for it any more.

    For what may take for ever: it neither takes a thread from the pool nor keeps the program from ending.
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
