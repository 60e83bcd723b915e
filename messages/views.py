"""What the task API shows: read from the registry, returned as JSON, consumed by the command line.

Every part that may not be known yet is optional: a record with parts missing is shown all the same.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from messages.statuses import (
    BackendKind,
    BootStatus,
    EventKind,
    HeartbeatState,
    Readiness,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure, Repository, SavedResult


class View(BaseModel):
    """The base of every view."""

    model_config = ConfigDict(frozen=True)


class StepView(View):
    """When a task reached a step."""

    step: TaskStep
    at: datetime


class BootLogEntry(View):
    """One line of a workspace's boot log; ids grow with the order of arrival."""

    id: int = 0
    attempt: int
    step: str
    status: BootStatus
    message: str
    detail: str | None = None
    timestamp: datetime


class WorkspaceView(View):
    """A workspace as the registry knows it. ``progress``: how far the provisioning is, while it takes time."""

    id: str
    task_id: str
    backend: BackendKind
    status: WorkspaceStatus
    attempt: int
    host_id: str | None = None
    name: str | None = None
    harness_url: str | None = None
    owner_workflow_id: str
    verdict: Verdict | None = None
    heartbeat_state: HeartbeatState | None = None
    heartbeat_reason: str | None = None
    last_heartbeat_at: datetime | None = None
    leak_suspected_at: datetime | None = None
    progress: str | None = None
    created_at: datetime
    boot_log: list[BootLogEntry] = []


class SessionView(View):
    """A session as the registry knows it; ``exit_code`` as :class:`~messages.signals.SessionFinished` says of it."""

    id: str
    attempt: int
    turn: int
    status: SessionStatus
    exit_code: int | None = None
    summary: str | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    output_bytes: int = 0


class TaskSummary(View):
    """A task in a list. ``step`` is where it is while it runs: before and after that there is none."""

    id: str
    status: TaskStatus
    step: TaskStep | None = None
    backend: BackendKind
    template: str
    prompt: str
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class TaskView(TaskSummary):
    """A task, whole.

    ``readiness``: how it is learned that its workspace is ready. ``last_error``: why the step that it is at is tried
    again, where it is.
    """

    workflow_id: str
    workspace_id: str
    ui_url: str | None = None
    repository: Repository | None = None
    ref: str | None = None
    env_names: list[str] = []
    readiness: Readiness | None = None
    provision_timeout_seconds: int | None = None
    provision_timeout_rule: str | None = None
    failure: ProvisionFailure | None = None
    last_error: str | None = None
    steps: list[StepView] = []
    workspace: WorkspaceView | None = None
    session: SessionView | None = None
    result: SavedResult | None = None


class TaskPage(View):
    """A page of tasks, newest first; ``next_cursor`` is there where more follow."""

    tasks: list[TaskSummary]
    next_cursor: str | None = None


class EventView(View):
    """One transition that happened."""

    id: int
    task_id: str | None = None
    workspace_id: str | None = None
    session_id: str | None = None
    kind: EventKind
    previous: str | None = None
    current: str | None = None
    detail: dict[str, Any] = {}
    at: datetime
