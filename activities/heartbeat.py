"""Heartbeats: every activity that has a heartbeat timeout beats by itself, and so hears of its cancellation."""

import asyncio
import contextlib
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from messages.errors import ErrorType

BEATS_PER_TIMEOUT = 3
T = TypeVar("T")

_details: ContextVar[list[Any]] = ContextVar("heartbeat details")


def failures_so_far() -> int:
    """Return how many earlier attempts have counted as failures (``activities/errors.py``): the first detail."""
    details = activity.info().heartbeat_details
    return details[0] if details and isinstance(details[0], int) else 0


def count_failure() -> int:
    """Return how many failures there have been with this one; the next attempt is handed that, whatever is between."""
    failures = failures_so_far() + 1
    _beat_from_now_on(failures)
    return failures


def note(text: str) -> None:
    """Beat with ``text`` now, and with every beat from now on: the Temporal UI shows it."""
    _beat_from_now_on(failures_so_far(), text)


def _beat_from_now_on(*details: Any) -> None:
    if (kept := _details.get(None)) is not None:
        kept[:] = details
    activity.heartbeat(*details)


async def until_worker_stops(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, which may take for ever and can be begun anew by anybody.

    Where the worker stops it is left to the next one at once, instead of holding up the stop for as long as others get.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(activity.wait_for_worker_shutdown())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApplicationError("the worker stops; the next one goes on", type=ErrorType.UNAVAILABLE)
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


class HeartbeatInterceptor(Interceptor):
    """Beats three times per heartbeat timeout for as long as an activity runs, the first time after a third of it.

    That the worker lives is what a beat says; an activity's own time limit is its ``start_to_close``.
    """

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Put the beating around the activity."""
        return _Beating(next)


class _Beating(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        timeout = activity.info().heartbeat_timeout
        if not timeout:
            return await super().execute_activity(input)
        _details.set(list(activity.info().heartbeat_details))  # an earlier attempt's, until there are others
        beating = asyncio.create_task(_beat(timeout.total_seconds() / BEATS_PER_TIMEOUT))
        try:
            return await super().execute_activity(input)
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating


async def _beat(interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds)  # that it has begun is known: most have ended by then
        activity.heartbeat(*_details.get())
