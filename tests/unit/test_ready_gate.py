"""The gates, driven without Temporal: whatever comes, in whatever order, the first of its kind stands."""

import itertools

import pytest

from messages.activities import LastLook
from messages.signals import ProvisioningFailed, SessionFinished, WorkspaceLost, WorkspaceReady
from messages.statuses import FailureSource, SessionStatus, Verdict
from workflows.gates import ReadyGate, SessionGate

READY = WorkspaceReady(workspace_id="w", attempt=1)
FAILED = ProvisioningFailed(workspace_id="w", attempt=1, error="broken", log_tail="log")
LOST = WorkspaceLost(workspace_id="w", attempt=1, reason="exited with 1", log_tail="log")
SILENT = LastLook(error="connection refused", log_tail="fetching")

DELIVERIES = {
    Verdict.READY: lambda gate: gate.ready(READY),
    Verdict.FAILED: lambda gate: gate.failed(FAILED),
    Verdict.TIMED_OUT: lambda gate: gate.time_out(SILENT),
}


@pytest.mark.parametrize("order", [order for n in (1, 2, 3, 4) for order in itertools.product(Verdict, repeat=n)])
def test_the_first_verdict_stands_in_every_order_and_number(order: tuple[Verdict, ...]) -> None:
    """S06"""
    gate = ReadyGate("w", 1)
    for verdict in order:
        DELIVERIES[verdict](gate)
    assert gate.decision is not None
    assert gate.decision.verdict is order[0]


@pytest.mark.parametrize(("workspace_id", "attempt"), [("other", 1), ("w", 2), ("w-1", 1)])
def test_other_workspaces_and_attempts_decide_nothing(workspace_id: str, attempt: int) -> None:
    """S06"""
    gate = ReadyGate("w", 1)
    address = {"workspace_id": workspace_id, "attempt": attempt}
    gate.ready(READY.model_copy(update=address))
    gate.failed(FAILED.model_copy(update=address))
    gate.lost(LOST.model_copy(update=address))
    assert not gate.decided


def test_a_last_look_that_finds_the_workspace_ready_decides_ready() -> None:
    """S10"""
    gate = ReadyGate("w", 1)
    gate.time_out(LastLook(ready=True))
    assert gate.decision is not None
    assert gate.decision.verdict is Verdict.READY


def test_a_last_look_that_finds_a_stored_failure_decides_failed_with_its_text() -> None:
    gate = ReadyGate("w", 1)
    gate.time_out(LastLook(failed=FAILED))
    assert gate.decision is not None
    assert (gate.decision.verdict, gate.decision.error, gate.decision.detail) == (Verdict.FAILED, "broken", "log")


def test_a_silent_last_look_times_out_with_what_it_saw() -> None:
    """S08"""
    gate = ReadyGate("w", 1)
    gate.time_out(SILENT)
    assert gate.decision is not None
    assert gate.decision.source is FailureSource.PROVISION_TIMEOUT
    assert (gate.decision.error, gate.decision.detail) == ("connection refused", "fetching")


def test_a_lost_workspace_fails_the_wait_with_its_log() -> None:
    """S14"""
    gate = ReadyGate("w", 1)
    gate.lost(LOST)
    assert gate.decision is not None
    assert (gate.decision.source, gate.decision.detail) == (FailureSource.EXIT, "log")


def _end(**changes: object) -> SessionFinished:
    fields = {"workspace_id": "w", "attempt": 1, "session_id": "s", "status": SessionStatus.COMPLETED, "exit_code": 0}
    return SessionFinished.model_validate(fields | changes)


def test_the_first_end_of_a_session_stands() -> None:
    gate = SessionGate("w", 1, "s")
    gate.finished(_end())
    gate.finished(_end(status=SessionStatus.FAILED, exit_code=1))
    gate.lost(LOST)
    assert gate.end == _end()


@pytest.mark.parametrize("changes", [{"session_id": "s2"}, {"attempt": 2}, {"workspace_id": "other"}])
def test_the_end_of_another_session_is_passed_over(changes: dict[str, object]) -> None:
    """S45"""
    gate = SessionGate("w", 1, "s")
    gate.finished(_end(**changes))
    assert gate.end is None


def test_losing_the_workspace_interrupts_the_session_with_the_reason() -> None:
    """S28"""
    gate = SessionGate("w", 1, "s")
    gate.lost(LOST)
    assert gate.end is not None
    assert (gate.end.status, gate.end.error) == (SessionStatus.INTERRUPTED, "exited with 1")
