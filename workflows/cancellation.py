"""Waiting in a workflow that may be cancelled: Temporal's cancellation, told from an eviction, never half honoured."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

T = TypeVar("T")


def cancel_requested() -> bool:
    """Whether somebody asked for the workflow's cancellation. Its eviction from a worker's cache looks alike."""
    return workflow.cancellation_reason() is not None


async def unless_cancelled(activity: Awaitable[T]) -> T:
    """Return the activity's result; raise where a cancellation was asked for and it ended well all the same."""
    result = await activity
    if cancel_requested():
        raise asyncio.CancelledError
    return result


async def undisturbed(activity: workflow.ActivityHandle[T]) -> T:
    """Wait for ``activity`` to the end: a cancellation that arrives meanwhile is honoured afterwards."""
    try:
        return await asyncio.shield(activity)
    except asyncio.CancelledError:
        if not cancel_requested():
            raise
        return await activity


async def beside(other: Coroutine[Any, Any, None], work: Awaitable[T]) -> T:
    """Return the result of ``work``; ``other`` is under way meanwhile, and is cancelled when ``work`` is over."""
    task = asyncio.create_task(other)
    try:
        result = await work
    except (ActivityError, asyncio.CancelledError):
        if cancel_requested():
            task.cancel()
        raise
    task.cancel()
    return result
