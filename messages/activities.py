"""The contract between the workflows and the activities: names, inputs, outputs.

Workflows call these definitions and never import the code behind them; ``activities`` implements them, and a test
proves that the implementation has exactly these names and types.
"""

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field
from temporalio import activity

from messages.base import Message
from messages.names import Id
from messages.signals import ProvisioningFailed, SessionFinished
from messages.statuses import BackendKind, Readiness
from messages.tasks import SavedResult, TaskInput, TaskOutcome

Attempt = Annotated[int, Field(ge=1)]


class PreflightRequest(Message):
    """Input of ``preflight_task``."""

    task: TaskInput


class Preflight(Message):
    """What preflight resolved: where the attempt runs, how long it may take, and from which commit it starts.

    ``base_commit`` is a full id, None where the workspace begins empty.
    """

    host_id: str
    task_queue: str
    provision_timeout_seconds: int
    provision_timeout_rule: str
    base_commit: str | None = None


class AttemptRequest(Message):
    """Input of everything that concerns one attempt."""

    task: TaskInput
    attempt: Attempt
    preflight: Preflight


class WorkspaceHandle(Message):
    """One attempt's compute: its name, the queue of those who can reach it, and where it answers HTTP.

    ``harness_url``: scheme, host and port, with neither path nor slash at the end. ``agent``: our workspace agent
    answers there; without it that is an image's own server.
    """

    workspace_id: Id
    attempt: Attempt
    backend: BackendKind
    name: str
    task_queue: str
    harness_url: str
    readiness: Readiness
    agent: bool = True


class LastLook(Message):
    """What a look at a silent workspace found: ready, failed, or neither.

    Then ``error`` says what it saw, and ``log_tail`` is the last 8 KiB of the log of what is going on there.
    """

    ready: bool = False
    failed: ProvisioningFailed | None = None
    error: str = ""
    log_tail: str = ""


class SessionRequest(Message):
    """Input of what concerns a session. ``run_id``: the harness's own id for it, where it has one and it is known."""

    task: TaskInput
    handle: WorkspaceHandle
    session_id: Id
    turn: int = 1
    reason: str = ""
    run_id: str = ""


class SessionCreated(Message):
    """A session that was created, or adopted. ``run_id``: as in :class:`SessionRequest`."""

    run_id: str = ""


class ReleaseRequest(Message):
    """Input of ``release_workspace``: the attempt, and how the task will end if nothing goes wrong from here on."""

    task: TaskInput
    attempt: Attempt
    preflight: Preflight
    outcome: TaskOutcome
    session_id: Id | None = None


class Release(Message):
    """What a release kept."""

    result: SavedResult | None = None


class FinishRequest(Message):
    """Input of ``finish_task``. ``leak_suspected`` says why compute may still exist, empty where none does."""

    task: TaskInput
    attempt: Attempt
    outcome: TaskOutcome
    leak_suspected: str = ""


class TaskActivities(ABC):
    """What a TaskRunner asks of the world. Every method may run again after a crash and then finds its own traces."""

    @activity.defn
    @abstractmethod
    async def preflight_task(self, request: PreflightRequest) -> Preflight:
        """Check everything that can be checked before anything costs money, and record the task as running.

        Runs on the repository's host where the task names one, else anywhere.
        Raises ``INVALID_TASK`` or ``BACKEND_UNUSABLE``, not retryable, naming what is missing.
        """

    @activity.defn
    @abstractmethod
    async def provision_workspace(self, request: AttemptRequest) -> WorkspaceHandle:
        """Create the attempt's compute, or adopt what a crash left of it.

        The row, name and attempt are written first. If the attempt is no longer wanted when the compute exists, the
        compute is deleted and ``ATTEMPT_SUPERSEDED`` raised. Cancellation deletes what was made before it returns.
        """

    @activity.defn
    @abstractmethod
    async def probe_workspace(self, handle: WorkspaceHandle) -> LastLook:
        """Ask ``GET <harness_url>/healthz`` until it is answered with ready, or the workspace's agent says it failed.

        The pause between two looks is 0.1 s, doubling to 5 s. Ends only so, or by cancellation; its heartbeats tell
        what the last look saw.
        """

    @activity.defn
    @abstractmethod
    async def look_once_more(self, handle: WorkspaceHandle) -> LastLook:
        """At the deadline: look for a stored callback of this attempt, then probe the workspace for at most 3 s.

        Gets 5 s in all (30 s where the deadline is seen late). It may fail, which counts as having found nothing.
        """

    @activity.defn
    @abstractmethod
    async def create_session(self, request: SessionRequest) -> SessionCreated | None:
        """Record the ready verdict, verify that the agent answers (at most 10 s), and create the session or adopt it.

        None is what releases before this one recorded.

        Raises ``SESSION_REFUSED`` (4xx, not retryable) or ``WORKSPACE_UNREACHABLE`` (retryable).
        """

    @activity.defn
    @abstractmethod
    async def follow_session(self, request: SessionRequest) -> SessionFinished:
        """Follow a harness's run to its end, storing its output as it comes, and return how it ended.

        For agents of kind ``harnessd``: the sessions of others report their end by a callback. Begun anew it goes on
        where the stored output ends.
        """

    @activity.defn
    @abstractmethod
    async def stop_session(self, request: SessionRequest) -> SessionFinished:
        """End the session if it still runs and return how it ended, once its output is delivered or cannot be.

        Raises ``WORKSPACE_UNREACHABLE`` (retryable) where its agent lives and does not answer, or does not end it.
        """

    @activity.defn
    @abstractmethod
    async def release_workspace(self, request: ReleaseRequest) -> Release:
        """Record the verdict and the session's end, save what the agent changed, destroy the compute.

        Whatever part of the workspace exists is handled, none at all included.
        Raises ``RESULT_NOT_SAVED`` (not retryable), and then keeps the workspace, or ``NOT_REMOVED`` (retryable).
        """

    @activity.defn
    @abstractmethod
    async def finish_task(self, request: FinishRequest) -> None:
        """Write the task's final record."""
