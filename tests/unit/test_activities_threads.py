"""Blocking calls beside the event loop: their result, and what becomes of it when nobody waits any more."""

import asyncio
import threading

import pytest

from activities.threads import in_daemon_thread, no_longer_than, to_its_end, until_done


async def test_the_result_or_the_error_reaches_the_caller() -> None:
    def fail() -> None:
        raise OSError("no")

    assert await in_daemon_thread(threading.current_thread) is not threading.current_thread()
    assert (await in_daemon_thread(threading.current_thread)).daemon
    with pytest.raises(OSError, match="no"):
        await in_daemon_thread(fail)


async def test_a_cancelled_caller_goes_on_at_once_and_what_comes_late_is_undone() -> None:
    started, go_on, undone = threading.Event(), threading.Event(), asyncio.Event()
    seen: list[int] = []

    def work() -> int:
        started.set()
        go_on.wait(20)
        return 7

    def undo(result: int) -> None:
        seen.append(result)
        undone.set()

    waiting = asyncio.create_task(in_daemon_thread(work, undo=undo))
    await asyncio.to_thread(started.wait, 20)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert seen == []
    go_on.set()
    async with asyncio.timeout(20):
        await undone.wait()
    assert seen == [7]


async def test_what_takes_too_long_is_left_behind_by_its_caller_alone() -> None:
    """S28: a thread that hangs in a call cannot be stopped, and is not waited for."""
    go_on = threading.Event()
    ended = asyncio.create_task(to_its_end(go_on.wait, 20))

    async def wait() -> bool:
        return await ended

    with pytest.raises(TimeoutError, match=r"no answer within 0.01 s"):
        await no_longer_than(0.01, wait())
    assert not ended.done()
    go_on.set()
    assert await no_longer_than(20, wait())


def test_what_comes_after_the_end_of_the_loop_is_undone_too() -> None:
    go_on, undone = threading.Event(), threading.Event()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_daemon_thread(lambda: go_on.wait(20), undo=lambda _: undone.set()), 0.01)

    asyncio.run(leave())
    go_on.set()
    assert undone.wait(20)


async def test_work_that_must_end_ends_although_its_caller_is_cancelled() -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    caller = asyncio.create_task(until_done(asyncio.ensure_future(work())))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()
