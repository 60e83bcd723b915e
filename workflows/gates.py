"""The two things a task waits for, as plain classes: a verdict on its attempt, and its session's end.

Neither knows Temporal. Whatever arrives, in any order and any number, the first of its kind stands and what belongs to
another workspace, attempt or session is passed over.
"""

from dataclasses import dataclass

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from messages.activities import LastLook
    from messages.signals import ProvisioningFailed, SessionFinished, WorkspaceLost, WorkspaceReady
    from messages.statuses import FailureSource, SessionStatus, Verdict


@dataclass(frozen=True)
class Decision:
    """A verdict and, unless it is ``ready``, who brought it, why, and the last 8 KiB of log behind it."""

    verdict: Verdict
    source: FailureSource | None = None
    error: str = ""
    detail: str = ""


READY = Decision(Verdict.READY)


class ReadyGate:
    """Decides one attempt's wait: ready, failed or timed out. The first decision stands for ever."""

    def __init__(self, workspace_id: str, attempt: int) -> None:
        self._belongs = (workspace_id, attempt)
        self.decision: Decision | None = None

    @property
    def decided(self) -> bool:
        """Whether the wait is over."""
        return self.decision is not None

    def ready(self, signal: WorkspaceReady) -> None:
        """Take the workspace's word that it is ready."""
        if (signal.workspace_id, signal.attempt) == self._belongs:
            self._decide(READY)

    def ready_without_wait(self) -> None:
        """Take provisioning's word: the workspace can be used as soon as it exists."""
        self._decide(READY)

    def failed(self, signal: ProvisioningFailed) -> None:
        """Take the workspace's word that it never will be ready."""
        if (signal.workspace_id, signal.attempt) == self._belongs:
            self._decide(Decision(Verdict.FAILED, FailureSource.BOOTSTRAP, signal.error, signal.log_tail))

    def lost(self, signal: WorkspaceLost) -> None:
        """Take the host's word that the compute has ended."""
        if (signal.workspace_id, signal.attempt) == self._belongs:
            self._decide(Decision(Verdict.FAILED, FailureSource.EXIT, signal.reason, signal.log_tail))

    def looked(self, look: LastLook) -> None:
        """Take what a look at the workspace found, where it found anything."""
        if look.ready:
            self._decide(READY)
        elif look.failed is not None:
            self.failed(look.failed)

    def time_out(self, look: LastLook) -> None:
        """Decide at the deadline, by what the last look found; whatever arrived during that look has won already.

        A failure that belongs to another attempt is none of this one's: that is a time-out.
        """
        self.looked(look)
        self._decide(Decision(Verdict.TIMED_OUT, FailureSource.PROVISION_TIMEOUT, look.error, look.log_tail))

    def _decide(self, decision: Decision) -> None:
        if self.decision is None:
            self.decision = decision


class SessionGate:
    """Decides how one session ended. The first end stands."""

    def __init__(self, workspace_id: str, attempt: int, session_id: str) -> None:
        self._belongs = (workspace_id, attempt)
        self.session_id = session_id
        self.end: SessionFinished | None = None

    def finished(self, signal: SessionFinished) -> None:
        """Take the workspace's word for the session's end."""
        if (signal.workspace_id, signal.attempt) == self._belongs and signal.session_id == self.session_id:
            self._decide(signal)

    def lost(self, signal: WorkspaceLost) -> None:
        """Take the host's word that the session's workspace has ended, and the session with it."""
        if (signal.workspace_id, signal.attempt) == self._belongs:
            self.interrupt(signal.reason)

    def interrupt(self, reason: str) -> None:
        """Decide that the session did not come to an end of its own."""
        workspace_id, attempt = self._belongs
        self._decide(
            SessionFinished(
                workspace_id=workspace_id,
                attempt=attempt,
                session_id=self.session_id,
                status=SessionStatus.INTERRUPTED,
                error=reason,
            )
        )

    def _decide(self, end: SessionFinished) -> None:
        if self.end is None:
            self.end = end
