"""An asynchronous test or fixture that hangs is ended in its own task, a little before pytest-timeout would end it.

pytest-timeout raises wherever the process is, and that is in the event loop: anyio's only task stays in what hangs, so
that every later asynchronous test fails too (``WouldBlock``), and the traceback ends in the loop. It is still there for
what blocks the loop, or does not let itself be cancelled.
"""

import asyncio
import faulthandler
import functools
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

_SHARE = 0.9
"""Of pytest-timeout's seconds; the rest is for unwinding."""


@dataclass(frozen=True)
class _Running:
    """What pytest-timeout counts for, and how long it may take, on the clock of event loops."""

    item: pytest.Item
    until: float


_running: _Running | None = None


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    global _running  # noqa: PLW0603 - one process, one test at a time
    _running = _Running(item, time.monotonic() + settings.timeout * _SHARE)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    global _running  # noqa: PLW0603
    _running = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _bounded(pyfuncitem.obj)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    function: Any = fixturedef.func
    if inspect.iscoroutinefunction(function):
        bounded: Any = _bounded(function)
    elif inspect.isasyncgenfunction(function):
        bounded = _bounded_generator(function)
    else:
        return (yield)
    vars(fixturedef)["func"] = bounded  # as anyio's plugin does, which comes next
    try:
        return (yield)
    finally:
        vars(fixturedef)["func"] = function


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def bounded(*args: Any, **kwargs: Any) -> Any:
        async with _in_time():
            return await function(*args, **kwargs)

    return bounded


def _bounded_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def bounded(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        values = function(*args, **kwargs)
        async with _in_time():
            value = await anext(values)
        yield value
        async with _in_time():
            async for _ in values:
                raise RuntimeError("a fixture yields once")

    return bounded


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    if not (running := _running):
        yield
        return
    try:
        async with asyncio.timeout_at(running.until) as bound:
            yield
        if bound.expired():  # the cancellation was swallowed
            raise TimeoutError
    except TimeoutError as e:
        if bound.expired():
            running.item.ihook.pytest_timeout_cancel_timer(item=running.item)  # it would hit the making of the report
            e.add_note("It hung: where, say the CancelledError above (unless swallowed) and the stacks of threads.")
            if threading.active_count() > 1:
                faulthandler.dump_traceback(2)  # pytest shows them with what failed
        raise
