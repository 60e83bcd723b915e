"""Every enumeration that is stored or shown, and which transitions are legal.

PostgreSQL has an enum type for each of these (``store/migrations``); a test proves that the two agree. The order of
:class:`TaskStep` is the order in which a task passes its steps.
"""

from collections.abc import Mapping
from enum import StrEnum


class TaskStatus(StrEnum):
    """What has become of a request."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the task."""
        return self in {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}


class TaskStep(StrEnum):
    """Where a running task is; only ever forward within one attempt, but for the last two before ``releasing``."""

    PREFLIGHT = "preflight"
    PROVISIONING = "provisioning"
    WAITING_FOR_READY = "waiting_for_ready"
    VERIFYING = "verifying"
    CREATING_SESSION = "creating_session"
    SESSION_RUNNING = "session_running"
    AWAITING_FOLLOWUP = "awaiting_followup"
    RELEASING = "releasing"


class WorkspaceStatus(StrEnum):
    """What a workspace is; ``removed`` is final."""

    PENDING = "pending"
    PROVISIONING = "provisioning"
    ONLINE = "online"
    DEGRADED = "degraded"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"
    REMOVED = "removed"


class SessionStatus(StrEnum):
    """What has become of one session."""

    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the session has ended."""
        return self not in {SessionStatus.STARTING, SessionStatus.RUNNING}


class Verdict(StrEnum):
    """What became of one attempt's wait; the first one stands for ever."""

    READY = "ready"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class BackendKind(StrEnum):
    """Where a workspace lives."""

    LOCAL = "local"
    WORKTREE = "worktree"
    CONTAINER = "container"
    VM = "vm"


class Readiness(StrEnum):
    """How a task learns that its workspace is ready."""

    CALLBACK = "callback"
    PROBE = "probe"
    IMMEDIATE = "immediate"


class FailureSource(StrEnum):
    """Who noticed that a workspace would not come up."""

    PREFLIGHT = "preflight"
    PROVIDER = "provider"
    BOOTSTRAP = "bootstrap"
    PROVISION_TIMEOUT = "provision_timeout"
    PROBE = "probe"
    EXIT = "exit"
    SWEEP = "sweep"


class EventKind(StrEnum):
    """What an event tells of."""

    TASK_STATUS = "task_status"
    TASK_STEP = "task_step"
    WORKSPACE_STATUS = "workspace_status"
    SESSION_STATUS = "session_status"
    VERDICT = "verdict"
    WORKSPACE_PROVISION_FAILED = "WORKSPACE_PROVISION_FAILED"
    RESULT_SAVED = "result_saved"
    LEAK_SUSPECTED = "leak_suspected"


class BootStatus(StrEnum):
    """How far a boot step is."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"


class HeartbeatState(StrEnum):
    """What a workspace says of itself in a heartbeat; its status is the registry's."""

    BOOTING = "booting"
    READY = "ready"
    DEGRADED = "degraded"


_T, _W, _S = TaskStatus, WorkspaceStatus, SessionStatus

TASK_TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    _T.QUEUED: frozenset({_T.RUNNING, _T.FAILED, _T.CANCELLED}),
    _T.RUNNING: frozenset({_T.COMPLETED, _T.FAILED, _T.CANCELLED}),
    _T.COMPLETED: frozenset(),
    _T.FAILED: frozenset({_T.QUEUED}),
    _T.CANCELLED: frozenset({_T.QUEUED}),
}
"""From each status, the statuses that may follow. ``failed`` and ``cancelled`` return to ``queued`` by a retry."""

WORKSPACE_TRANSITIONS: Mapping[WorkspaceStatus, frozenset[WorkspaceStatus]] = {
    _W.PENDING: frozenset({_W.PROVISIONING, _W.FAILED, _W.REMOVED}),
    _W.PROVISIONING: frozenset({_W.ONLINE, _W.FAILED, _W.STOPPING, _W.REMOVED}),
    _W.ONLINE: frozenset({_W.DEGRADED, _W.RESTARTING, _W.STOPPING, _W.FAILED, _W.REMOVED}),
    _W.DEGRADED: frozenset({_W.ONLINE, _W.RESTARTING, _W.STOPPING, _W.FAILED, _W.REMOVED}),
    _W.RESTARTING: frozenset({_W.PROVISIONING, _W.STOPPING, _W.FAILED, _W.REMOVED}),
    _W.STOPPING: frozenset({_W.FAILED, _W.REMOVED}),
    _W.FAILED: frozenset({_W.ONLINE, _W.PROVISIONING, _W.STOPPING, _W.REMOVED}),
    _W.REMOVED: frozenset(),
}
"""From each status, the statuses that may follow; nothing follows ``removed``."""

SESSION_TRANSITIONS: Mapping[SessionStatus, frozenset[SessionStatus]] = {
    _S.STARTING: frozenset({_S.RUNNING, _S.COMPLETED, _S.FAILED, _S.INTERRUPTED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.COMPLETED, _S.FAILED, _S.INTERRUPTED, _S.CANCELLED}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.INTERRUPTED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""From each status, the statuses that may follow. A short session can end before its start was recorded."""
