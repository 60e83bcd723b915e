"""A task's activities with nothing behind them: what is left is what the orchestration itself costs."""

from collections.abc import Awaitable, Callable

from temporalio import activity

from messages.activities import (
    AttemptRequest,
    FinishRequest,
    LastLook,
    Preflight,
    PreflightRequest,
    Release,
    ReleaseRequest,
    SessionCreated,
    SessionRequest,
    TaskActivities,
    WorkspaceHandle,
)
from messages.names import compute_name
from messages.signals import SessionFinished
from messages.statuses import SessionStatus


class NoOpActivities(TaskActivities):
    """They answer at once, for ``host_id``, whose work is taken from ``queue``.

    ``session_created`` hears of each session when it is about to run.
    """

    def __init__(self, host_id: str, queue: str, session_created: Callable[[SessionRequest], Awaitable[None]]) -> None:
        self._host_id = host_id
        self._queue = queue
        self._session_created = session_created

    @activity.defn
    async def preflight_task(self, request: PreflightRequest) -> Preflight:  # noqa: ARG002
        """Find nothing wrong."""
        return Preflight(
            host_id=self._host_id,
            task_queue=self._queue,
            provision_timeout_seconds=600,
            provision_timeout_rule="default",
        )

    @activity.defn
    async def provision_workspace(self, request: AttemptRequest) -> WorkspaceHandle:
        """Hand out the handle of a workspace that does not exist."""
        task = request.task
        return WorkspaceHandle(
            workspace_id=task.workspace_id,
            attempt=request.attempt,
            backend=task.template.backend,
            name=compute_name(task.workspace_id, request.attempt),
            task_queue=self._queue,
            harness_url="http://127.0.0.1:1",
            readiness=task.template.effective_readiness,
        )

    @activity.defn
    async def probe_workspace(self, handle: WorkspaceHandle) -> LastLook:  # noqa: ARG002
        """Find it ready."""
        return LastLook(ready=True)

    @activity.defn
    async def look_once_more(self, handle: WorkspaceHandle) -> LastLook:  # noqa: ARG002
        """See nothing."""
        return LastLook(error="there is no workspace")

    @activity.defn
    async def create_session(self, request: SessionRequest) -> SessionCreated | None:
        """Say that the session was created."""
        await self._session_created(request)
        return SessionCreated()

    @activity.defn
    async def follow_session(self, request: SessionRequest) -> SessionFinished:
        """Say that it has ended."""
        return finished(request, SessionStatus.COMPLETED)

    @activity.defn
    async def stop_session(self, request: SessionRequest) -> SessionFinished:
        """Say that it was cancelled."""
        return finished(request, SessionStatus.CANCELLED)

    @activity.defn
    async def release_workspace(self, request: ReleaseRequest) -> Release:  # noqa: ARG002
        """Keep nothing."""
        return Release()

    @activity.defn
    async def finish_task(self, request: FinishRequest) -> None:
        """Record nothing."""


def finished(request: SessionRequest, status: SessionStatus) -> SessionFinished:
    """Return the end of a session."""
    return SessionFinished(
        workspace_id=request.handle.workspace_id,
        attempt=request.handle.attempt,
        session_id=request.session_id,
        status=status,
        exit_code=0,
    )
