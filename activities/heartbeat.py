"""Heartbeats: every activity that has a heartbeat timeout beats by itself, and so hears of its cancellation."""

import asyncio
import contextlib
from contextvars import ContextVar
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

BEATS_PER_TIMEOUT = 3

_details: ContextVar[list[Any]] = ContextVar("heartbeat details")


def note(*details: Any) -> None:
    """Beat with ``details`` now, and with every beat from now on: the Temporal UI and the next attempt see them."""
    if (kept := _details.get(None)) is not None:
        kept[:] = details
    activity.heartbeat(*details)


class HeartbeatInterceptor(Interceptor):
    """Beats three times per heartbeat timeout for as long as an activity runs.

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
        activity.heartbeat(*_details.get())
        await asyncio.sleep(interval_seconds)
