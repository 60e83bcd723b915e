"""How attempts and sessions come to an early end, in the words that the workflow and the registry get."""

from dataclasses import dataclass

from activities.errors import ProvisionFailed, WorkspaceUnreachable
from messages.activities import LastLook, SessionRequest, WorkspaceHandle
from messages.signals import ProvisioningFailed, SessionFinished
from messages.statuses import FailureSource, SessionStatus

SAYS_FAILED = "the workspace agent says that it failed"


@dataclass(frozen=True)
class Loss:
    """How a workspace, or the server in it that a session needs, has ended, and the last 8 KiB of its log."""

    ending: str
    log_tail: str

    @property
    def sentence(self) -> str:
        """The ending, with the last line of the log."""
        lines = [line.strip() for line in self.log_tail.splitlines() if line.strip()]
        return f"{self.ending} (it said last: {lines[-1][:300]})" if lines else self.ending


def hopeless(handle: WorkspaceHandle, error: str, tail: str) -> LastLook:
    """Return what a look found at a workspace that will never be ready."""
    failed = ProvisioningFailed(workspace_id=handle.workspace_id, attempt=handle.attempt, error=error, log_tail=tail)
    return LastLook(failed=failed, error=error)


def gone(found: Loss) -> ProvisionFailed:
    """Return the failure of a workspace that ended too early: with its own log, not with our refused call."""
    error = f"The workspace ended by itself before its session was confirmed: {found.ending}."
    return ProvisionFailed(error, source=FailureSource.EXIT, detail=found.log_tail)


def never_ready(handle: WorkspaceHandle, last: WorkspaceUnreachable, tail: str) -> ProvisionFailed:
    """Return the failure of a workspace that counted as ready and does not answer us; ``last`` is the last look."""
    error = f"{handle.backend.value} workspace {handle.workspace_id} never became ready: {last}"
    return ProvisionFailed(error, source=FailureSource.PROBE, detail=last.log_tail or tail)


def ended(request: SessionRequest, status: SessionStatus, error: str = "", *, summary: str = "") -> SessionFinished:
    """Return the end of a session that has no exit code."""
    return SessionFinished(
        workspace_id=request.handle.workspace_id,
        attempt=request.handle.attempt,
        session_id=request.session_id,
        status=status,
        summary=summary,
        error=error,
    )
