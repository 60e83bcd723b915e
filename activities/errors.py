"""What goes wrong in an activity, and the one place that says it in Temporal's terms.

::

    ActivityFailure
    ├── NotThisHost            another host has to do it                     retried there
    ├── InvalidTask            the task cannot run as asked                 never retried
    ├── BackendUnusable        this host lacks something                    never retried
    ├── ProvisionFailed        the attempt will never be ready              never retried
    │   └── ProvisionInterrupted   another try may bring it up              retried, MAX_TRIES in all
    ├── AttemptNotWanted       another attempt counts, or none any more     never retried
    ├── SessionRefused         the workspace agent said 4xx                 never retried
    ├── ResultNotSaved         the change could not be kept                 never retried
    ├── RepositoryUnreachable  a repository's host is away                  retried for about a minute
    │   └── UnknownHost            there is no such host                    retried for three seconds
    ├── BackendAway            the service behind a backend is away         retried for as long as there is time
    ├── WorkspaceUnreachable   the workspace agent does not answer          retried, MAX_TRIES in all
    └── NotRemoved             compute could not be taken down (yet)        retried, MAX_TRIES in all

What else an activity raises: ``RegistryUnavailable``, ``MigrationError`` and ``OSError`` mean that a part of ours is
away (``UNAVAILABLE``), and are retried for as long as the workflow has time, but for a file or folder that somebody has
to mend first (``BACKEND_UNUSABLE``, never retried); another error of the registry is hopeless; all the rest are defects
(both ``INTERNAL``), retried MAX_TRIES in all, for what may have come of a bad moment.
"""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, FailureError

from activities.heartbeat import count_failure
from messages.callbacks import log_tail
from messages.errors import ErrorType
from messages.file_errors import LASTING, NO_SPACE, trouble_with
from messages.statuses import FailureSource
from messages.tasks import FailureDetail
from store.errors import AttemptSuperseded, MigrationError, RegistryError, RegistryUnavailable


class ActivityFailure(Exception):
    """The base: ``error_type`` is what the workflow sees, ``retryable`` whether Temporal tries again."""

    error_type: ClassVar[ErrorType]
    retryable: bool = False
    pauses: ClassVar[tuple[float, ...]] = ()
    """Seconds before each further try, where the workflow's retry policy is not to say; as many tries as pauses."""
    patient: ClassVar[bool] = False
    """Whether tries are not counted: what is away comes back."""
    category: ClassVar[ApplicationErrorCategory] = ApplicationErrorCategory.UNSPECIFIED

    def details(self) -> tuple[object, ...]:
        """Return the details of the ApplicationError."""
        return ()


class NotThisHost(ActivityFailure):
    """The step was tried on a host that is not the one to carry it out; that one's queue is asked next."""

    error_type = ErrorType.HOST_AWAY
    retryable = True
    patient = True
    category = ApplicationErrorCategory.BENIGN  # on a fleet of hosts it is the usual thing: no traceback in the log


class InvalidTask(ActivityFailure):
    """The task cannot run as asked; the text names what is wrong and what to do."""

    error_type = ErrorType.INVALID_TASK


class BackendUnusable(ActivityFailure):
    """The backend lacks a program or a permission on this host; the text says what to do."""

    error_type = ErrorType.BACKEND_UNUSABLE


class ProvisionFailed(ActivityFailure):
    """The attempt will never be ready.

    ``detail`` is the log that tells why; its last 8 KiB travel, with ``source``, as the error's only detail.
    """

    error_type = ErrorType.PROVISION_FAILED

    def __init__(self, text: str, *, source: FailureSource, detail: str = "") -> None:
        super().__init__(text)
        self.source = source
        self.detail = detail

    def details(self) -> tuple[object, ...]:
        """Return who noticed, and the end of the log."""
        return (FailureDetail(source=self.source, detail=log_tail(self.detail)),)


class ProvisionInterrupted(ProvisionFailed):
    """The attempt could not be brought up this time, for a reason that may pass."""

    retryable = True


class AttemptNotWanted(ActivityFailure):
    """The attempt is no longer the current one, or no longer wanted."""

    error_type = ErrorType.ATTEMPT_SUPERSEDED


class SessionRefused(ActivityFailure):
    """The workspace agent refused the session; asking again would not help."""

    error_type = ErrorType.SESSION_REFUSED


class ResultNotSaved(ActivityFailure):
    """What the agent changed could not be kept; the text says where it still is."""

    error_type = ErrorType.RESULT_NOT_SAVED


class RepositoryUnreachable(ActivityFailure):
    """The host of a repository by URL cannot be reached, or broke off; the text says which and how."""

    error_type = ErrorType.REPOSITORY_UNREACHABLE
    retryable = True
    pauses = (1, 2, 4, 8, 15, 30)


class UnknownHost(RepositoryUnreachable):
    """The resolver answers that there is no host of that name: mistyped, unless a network is just coming up."""

    pauses = (1, 2)


class BackendAway(ActivityFailure):
    """The service behind a backend does not answer; what it runs may live on, and is found when it is back."""

    error_type = ErrorType.UNAVAILABLE
    retryable = True
    patient = True


class WorkspaceUnreachable(ActivityFailure):
    """The workspace agent does not answer, or answers that something is wrong with it; ``log_tail``: what it logged."""

    error_type = ErrorType.WORKSPACE_UNREACHABLE
    retryable = True

    def __init__(self, text: str, *, log_tail: str = "") -> None:
        super().__init__(text)
        self.log_tail = log_tail


class NotRemoved(ActivityFailure):
    """Something of the compute is still there; trying again may remove it."""

    error_type = ErrorType.NOT_REMOVED
    retryable = True


MAX_TRIES = 5
"""How often an activity may fail in one of these ways before it counts as hopeless.

The count travels in the heartbeat details: outages of our own parts and killed workers are attempts too, but no such
failures.
"""


@contextmanager
def as_application_errors() -> Generator[None]:
    """Turn what the body raises into the ``ApplicationError`` that the workflow understands."""
    try:
        yield
    except ActivityFailure as e:
        failures = _count_failure() if e.retryable and not e.patient else 0
        again = e.retryable and failures < (len(e.pauses) + 1 if e.pauses else MAX_TRIES)
        pause = timedelta(seconds=e.pauses[failures - 1]) if again and failures and e.pauses else None
        raise ApplicationError(
            str(e),
            *e.details(),
            type=e.error_type.value,
            non_retryable=not again,
            next_retry_delay=pause,
            category=e.category,
        ) from e
    except AttemptSuperseded as e:
        raise ApplicationError(str(e), type=ErrorType.ATTEMPT_SUPERSEDED.value, non_retryable=True) from e
    except (RegistryUnavailable, MigrationError) as e:
        raise ApplicationError(_text(e), type=ErrorType.UNAVAILABLE.value) from e
    except OSError as e:
        raise _of_system(e) from e
    except FailureError:
        raise
    except Exception as e:
        # Nobody but the workers can write the final record, so that one is tried until they can.
        again = activity.info().is_local or (not isinstance(e, RegistryError) and _count_failure() < MAX_TRIES)
        text = f"internal error: {_text(e)} (the worker's log says more)"
        raise ApplicationError(text, type=ErrorType.INTERNAL.value, non_retryable=not again) from e


def _of_system(error: OSError) -> ApplicationError:
    path = error.filename if isinstance(error.filename, str) else None
    if path is not None and error.errno in LASTING:
        # The first try of a short step leaves the verdict to the activity after it, and the final record has to come.
        again = activity.info().is_local
        text = str(trouble_with(path, error))
        return ApplicationError(text, type=ErrorType.BACKEND_UNUSABLE.value, non_retryable=not again)
    if error.errno in NO_SPACE:
        text = str(trouble_with(path, error)) if path else f"a disk is full: {error}; free some space"
        return ApplicationError(text, type=ErrorType.UNAVAILABLE.value)
    return ApplicationError(_text(error), type=ErrorType.UNAVAILABLE.value)


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, RegistryError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _count_failure() -> int:
    """Return how many failures there have been with this one; the first try of a step, a local one, does not count."""
    return 0 if activity.info().is_local else count_failure()
