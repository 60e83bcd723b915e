"""Timeouts and retry policies, one entry an activity.

Activities of a host beat every few seconds (``activities/heartbeat.py``), so that the death of their worker is noticed
within :data:`HOST_HEARTBEAT`, not at the end of what they may take.

Where a task depends on it, the number of attempts is not limited: a database that is away for minutes must not fail a
task. What can be known to be hopeless is raised as not retryable by the activity itself (``activities/errors.py``).
"""

from datetime import timedelta

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig, LocalActivityConfig

HOST_HEARTBEAT = timedelta(seconds=10)
HOST_AWAY = timedelta(minutes=15)
"""How long work for a host may wait for a worker there."""

_PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=250), backoff_coefficient=2, maximum_interval=timedelta(seconds=10)
)

PREFLIGHT = ActivityConfig(
    schedule_to_close_timeout=timedelta(hours=1),
    schedule_to_start_timeout=HOST_AWAY,
    start_to_close_timeout=timedelta(seconds=30),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=_PATIENT,
)

PROVISION = ActivityConfig(
    schedule_to_close_timeout=timedelta(hours=1),
    schedule_to_start_timeout=HOST_AWAY,
    start_to_close_timeout=timedelta(minutes=15),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=_PATIENT,
    # What a create call made must be gone, or known, before the task goes on to its release.
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)

PROBE = ActivityConfig(
    # Longer than any wait for ready: the workflow ends it with that wait, and no host that is away ends it before.
    start_to_close_timeout=timedelta(days=30),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=_PATIENT,
    # A verdict never waits for it: a look that is still under way then changes nothing.
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)

LAST_LOOK = ActivityConfig(
    # A verdict falls at most 5 s after the deadline, whatever becomes of the look.
    schedule_to_close_timeout=timedelta(seconds=5),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=250), maximum_attempts=2),
)

LATE_LOOK: ActivityConfig = {**LAST_LOOK, "schedule_to_close_timeout": timedelta(seconds=30)}
"""Where the deadline is seen late (Temporal or all workers were away), others are only coming back too."""

LATE = timedelta(seconds=2)
"""A deadline that is seen so long after its time counts as seen late."""

CREATE_SESSION = ActivityConfig(
    schedule_to_close_timeout=timedelta(hours=1),
    schedule_to_start_timeout=HOST_AWAY,
    start_to_close_timeout=timedelta(seconds=40),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=_PATIENT,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)

FOLLOW: ActivityConfig = {**PROBE, "start_to_close_timeout": timedelta(days=400)}
"""As :data:`PROBE`, for as long as a session may take: the workflow ends it with its own wait."""

STOP_SESSION = ActivityConfig(
    # The release ends the session's processes in any case: this is the polite way, and it need not succeed.
    schedule_to_close_timeout=timedelta(minutes=2),
    start_to_close_timeout=timedelta(seconds=45),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_attempts=3),
)

RELEASE = ActivityConfig(
    schedule_to_close_timeout=timedelta(hours=6),
    schedule_to_start_timeout=HOST_AWAY,
    start_to_close_timeout=timedelta(minutes=15),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=_PATIENT,
)

HERE = LocalActivityConfig(
    # Nothing reaches a workflow while one of its workflow tasks is under way, so this is short.
    schedule_to_close_timeout=timedelta(seconds=1),
    retry_policy=RetryPolicy(maximum_attempts=1),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""The first try of a short step (``workflows/nearby.py``)."""

FINISH = LocalActivityConfig(start_to_close_timeout=timedelta(seconds=10), retry_policy=_PATIENT)
"""A local activity: one short write, which any worker that runs the workflow can do."""


def local(summary: str, config: LocalActivityConfig) -> LocalActivityConfig:
    """Return ``config`` for one call of a local activity."""
    return {**config, "summary": summary}


def at(queue: str, summary: str, config: ActivityConfig) -> ActivityConfig:
    """Return ``config`` for one call: where it runs, and what the Temporal UI says of it."""
    return {**config, "task_queue": queue, "summary": summary}
