"""What an activity's failure, or a session's end, means for its task."""

from dataclasses import dataclass

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType

with workflow.unsafe.imports_passed_through():
    from messages.errors import ErrorType
    from messages.signals import SessionFinished
    from messages.statuses import SessionStatus, TaskStatus, Verdict
    from messages.tasks import FailureDetail, ProvisionFailure, TaskOutcome


@dataclass(frozen=True)
class Cause:
    """Why an activity failed for good: kind, one sentence, and what the activity attached, if it did."""

    type: ErrorType
    error: str
    attached: FailureDetail | None = None


def cause_of(failure: ActivityError, otherwise: ErrorType, host: str | None = None) -> Cause:
    """Return what lies behind ``failure``; ``otherwise`` is the kind of what no activity has classified.

    ``host`` is the one host that could have carried the activity out, where there is only one.
    """
    match failure.cause:
        case ApplicationError() as cause:
            known = cause.type is not None and cause.type in set(ErrorType)
            text = cause.message or f"{failure.activity_type} failed without saying why"
            return Cause(ErrorType(cause.type) if known else otherwise, text, _attached(cause))
        case TimeoutError(type=TimeoutType.SCHEDULE_TO_START):
            where = f" on host {host}" if host else ""
            return Cause(ErrorType.HOST_AWAY, f"no worker{where} took {failure.activity_type} in time")
        case TimeoutError() as cause:
            kind = cause.type.name.lower() if cause.type else "unknown"
            return Cause(otherwise, f"{failure.activity_type} did not end in time ({kind} timeout)")
        case cause:
            return Cause(otherwise, f"{failure.activity_type} failed: {cause or failure}")


def _attached(cause: ApplicationError) -> FailureDetail | None:
    try:
        return FailureDetail.model_validate(cause.details[0]) if cause.details else None
    except ValidationError:
        return None


def failed(
    kind: ErrorType,
    error: str,
    *,
    verdict: Verdict,
    failure: ProvisionFailure | None = None,
    session: SessionFinished | None = None,
) -> TaskOutcome:
    """Return the outcome of a task that failed."""
    return TaskOutcome(
        status=TaskStatus.FAILED, error=error, error_type=kind, verdict=verdict, failure=failure, session=session
    )


def outcome_of(end: SessionFinished) -> TaskOutcome:
    """Return the outcome of a task whose session ended without our doing."""
    if end.status is SessionStatus.COMPLETED:
        return TaskOutcome(status=TaskStatus.COMPLETED, verdict=Verdict.READY, session=end)
    kind = ErrorType.SESSION_INTERRUPTED if end.status is SessionStatus.INTERRUPTED else ErrorType.SESSION_FAILED
    error = end.error or (f"exited with {end.exit_code}" if end.exit_code is not None else "no reason was given")
    return failed(kind, f"the session {end.status.value}: {error}", verdict=Verdict.READY, session=end)
