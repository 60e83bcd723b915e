"""What a task says of itself: the answer of the query ``status``, and the current details in the Temporal UI."""

from datetime import datetime

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from messages.activities import WorkspaceHandle
    from messages.names import compute_name
    from messages.statuses import TaskStatus, TaskStep
    from messages.tasks import TaskInput, TaskProgress


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


class Progress:
    """Where a task is, what it waits for, since when, until when, and the last thing that went wrong."""

    def __init__(self, task: TaskInput, attempt: int, now: datetime) -> None:
        self._task = task
        self._attempt = attempt
        self._status = TaskStatus.RUNNING
        self._step = TaskStep.PREFLIGHT
        self._waiting_for = "a worker that checks whether the task can run as asked"
        self._since = now
        self._until: datetime | None = None
        self._session_id: str | None = None
        self.last_error = ""
        self.handle: WorkspaceHandle | None = None

    @property
    def step(self) -> TaskStep:
        """The step the task is in."""
        return self._step

    def enter(
        self,
        step: TaskStep,
        waiting_for: str,
        now: datetime,
        until: datetime | None = None,
        session_id: str | None = None,
    ) -> None:
        """Note that the task has reached ``step`` and what it waits for there."""
        self._step, self._waiting_for, self._since, self._until = step, waiting_for, now, until
        self._session_id = session_id or self._session_id

    def end(self, status: TaskStatus, now: datetime) -> None:
        """Note that nothing more will happen."""
        self._status, self._waiting_for, self._since, self._until = status, "nothing: the task has ended", now, None

    def snapshot(self) -> TaskProgress:
        """Return the answer of the query ``status``."""
        return TaskProgress(
            status=self._status,
            step=self._step,
            waiting_for=self._waiting_for,
            since=self._since,
            until=self._until,
            last_error=self.last_error,
            workspace_id=self._task.workspace_id,
            attempt=self._attempt,
            session_id=self._session_id,
        )

    def describe(self) -> str:
        """Return one sentence (Markdown) for the Temporal UI, and the last error where there was one."""
        until = f", until {_clock(self._until)} at the latest" if self._until else ""
        name = compute_name(self._task.workspace_id, self._attempt)
        where = f" at {self.handle.harness_url}" if self.handle else ""
        lines = [
            f"**{self._step.value}**: waits for {self._waiting_for}, since {_clock(self._since)}{until}.",
            f"Workspace `{name}` on backend `{self._task.template.backend.value}`{where}.",
        ]
        if self.last_error:
            lines.append(f"Last error: {self.last_error}")
        return "\n\n".join(lines)
