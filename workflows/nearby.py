"""Short steps, carried out by the worker that has the workflow wherever that is the right one: no trip to the server.

The first try of such a step is a local activity: it begins with the workflow task that asks for it, and its result
travels with that workflow task's own. Whatever that one cannot do, at once and there, is an ordinary activity on the
queue of those who can: it waits for its host, is tried again, and is seen in the Temporal UI while it is.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, RetryState, is_cancelled_exception
from temporalio.workflow import ActivityConfig

from workflows import options
from workflows.cancellation import cancel_requested

A = TypeVar("A")
T = TypeVar("T")


async def here_first(
    step: Callable[[Any, A], Awaitable[T]],
    request: A,
    config: ActivityConfig,
    *,
    here: bool = True,
    announce: Callable[[], None] = lambda: None,
) -> T:
    """Return what ``step`` answers to ``request``: tried here first, else as an activity with ``config``.

    ``here``: whether to try that at all. ``announce`` is called before the activity is scheduled. Raises
    ``ActivityError``: that of the first try where it is final, else the activity's.
    """
    if here:
        try:
            return await workflow.execute_local_activity_method(
                step, request, **options.local(config.get("summary") or "", options.HERE)
            )
        except FailureError as e:
            if is_cancelled_exception(e) and cancel_requested():
                raise
            if isinstance(e, ApplicationError) and e.non_retryable:
                raise _activity_error(step.__name__) from e
    announce()
    return await workflow.execute_activity_method(step, request, **config)


def _activity_error(activity_type: str) -> ActivityError:
    """Return what surrounds an activity's failure: that of a local one comes bare."""
    return ActivityError(
        "Activity task failed",
        scheduled_event_id=0,
        started_event_id=0,
        identity="",
        activity_type=activity_type,
        activity_id="",
        retry_state=RetryState.NON_RETRYABLE_FAILURE,
    )
