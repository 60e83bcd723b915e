"""Signals of a :data:`~messages.names.TASK_RUNNER` workflow, one argument each."""

from messages.base import Message
from messages.names import Id
from messages.statuses import SessionStatus


class WorkspaceReady(Message):
    """An attempt's workspace says that it can take a session."""

    workspace_id: Id
    attempt: int
    agent_version: str | None = None


class ProvisioningFailed(Message):
    """An attempt's workspace says that it will never be ready. ``error`` is never empty."""

    workspace_id: Id
    attempt: int
    error: str
    log_tail: str = ""


class SessionFinished(Message):
    """A session has ended, by itself or because it was told to.

    ``exit_code``: the program's; 128 + the signal's number where one killed it; 126 or 127 where it could not be
    started, as a shell says it; None where its end was never seen (the workspace was lost, or its agent restarted).
    """

    workspace_id: Id
    attempt: int
    session_id: Id
    status: SessionStatus
    exit_code: int | None = None
    summary: str = ""
    error: str = ""


class WorkspaceLost(Message):
    """The host noticed that an attempt's compute is gone. ``reason`` is never empty."""

    workspace_id: Id
    attempt: int
    reason: str
    log_tail: str = ""


DEFAULT_FAILURE = "The workspace reported that provisioning failed, without saying why."
"""Stands in where a workspace reports a failure without a text."""
