"""Types of the errors that cross between activities, workflows and clients.

``ApplicationError.type`` is always one of these; whether it may be retried is said where it is raised.
"""

from enum import StrEnum


class ErrorType(StrEnum):
    """What went wrong, by kind."""

    INVALID_TASK = "InvalidTask"
    """The task cannot run as asked: template, repository, ref, environment. Never retried."""
    BACKEND_UNUSABLE = "BackendUnusable"
    """The backend lacks something on that host: a program, a permission. Never retried."""
    REPOSITORY_UNREACHABLE = "RepositoryUnreachable"
    """The repository's host cannot be reached, or does not answer as it should. Retried for about a minute."""
    PROVISION_FAILED = "WorkspaceProvisionFailed"
    """The attempt will never be ready; carries a ProvisionFailure where one is known."""
    ATTEMPT_SUPERSEDED = "AttemptSuperseded"
    """The attempt is no longer the current one, or no longer wanted. Never retried."""
    WORKSPACE_UNREACHABLE = "WorkspaceUnreachable"
    """The workspace agent does not answer. Retried."""
    SESSION_REFUSED = "SessionRefused"
    """The workspace agent refused the session (4xx). Never retried."""
    SESSION_FAILED = "SessionFailed"
    """The session ended without success."""
    SESSION_TIMED_OUT = "SessionTimedOut"
    """The session did not end by its deadline."""
    SESSION_INTERRUPTED = "SessionInterrupted"
    """The workspace was lost under the session."""
    RESULT_NOT_SAVED = "ResultNotSaved"
    """What the agent changed could not be kept, so the workspace was. Never retried."""
    NOT_REMOVED = "NotRemoved"
    """Something of the compute is still there. Retried."""
    HOST_AWAY = "HostAway"
    """No worker on the workspace's host took the work in time."""
    UNAVAILABLE = "Unavailable"
    """A part of ours (PostgreSQL, a disk, a worker) was away for too long. Retried until then."""
    INTERNAL = "Internal"
    """A defect of ours, or a registry that does not know what it has to. Retried a few times at most."""
