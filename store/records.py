"""What the registry answers where a view of the task API would not do."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from messages.base import Message
from messages.names import callback_request_id
from messages.statuses import BackendKind, TaskStatus, Verdict, WorkspaceStatus
from messages.tasks import TaskInput


class Submission(NamedTuple):
    """The stored task, and whether this call created it. ``status`` is the task's current one."""

    task: TaskInput
    created: bool
    status: TaskStatus


@dataclass(frozen=True, slots=True)
class AttemptState:
    """A workspace's current attempt, as callbacks and activities are judged by it; ``verdict``: None before one."""

    workspace_id: str
    attempt: int
    status: WorkspaceStatus
    owner_workflow_id: str
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Beat:
    """A living workspace and when it was heard last.

    ``has_session``: a session of its attempt has not ended. ``silent_seconds``: since its last heartbeat, or since that
    session was created where none has come (``has_beaten``); 0 where there is neither, or no agent of ours to beat.
    """

    workspace_id: str
    attempt: int
    task_id: str
    backend: BackendKind
    host_id: str | None
    harness_url: str | None
    has_session: bool
    has_beaten: bool
    silent_seconds: float
    interval_seconds: float


@dataclass(frozen=True, slots=True)
class OutputAppended:
    """How many bytes of a piece were new, and the offset (bytes) that has to come next."""

    stored_bytes: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """Output from ``offset`` (bytes) on. ``data`` is empty where nothing is stored there (yet)."""

    offset: int
    data: bytes
    next_offset: int


@dataclass(frozen=True, slots=True)
class Callback:
    """A signal for a workflow. ``payload`` is the JSON of the signal's one argument."""

    workflow_id: str
    signal: str
    workspace_id: str
    attempt: int
    session_id: str | None
    payload: dict[str, Any]

    @staticmethod
    def of(
        signal: str,
        message: Message,
        *,
        workflow_id: str,
        workspace_id: str,
        attempt: int,
        session: str | None = None,
    ) -> "Callback":
        """Return the callback that carries ``message``."""
        return Callback(workflow_id, signal, workspace_id, attempt, session, message.model_dump(mode="json"))

    @property
    def request_id(self) -> str:
        """The id under which Temporal recognises a repeat."""
        return callback_request_id(self.workspace_id, self.attempt, self.signal, self.session_id or "")


@dataclass(frozen=True, slots=True)
class StoredCallback(Callback):
    """One that Temporal could not take when it came; ``id`` is the registry's."""

    id: int
