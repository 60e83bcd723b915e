"""Workspaces: attempts, verdicts, heartbeats, boot logs."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest

from messages.callbacks import BootLogBody, HeartbeatBody
from messages.names import task_workflow_id
from messages.statuses import (
    BackendKind,
    BootStatus,
    EventKind,
    FailureSource,
    HeartbeatState,
    Readiness,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import TaskInput, TaskOutcome
from messages.templates import ContainerConfig, HarnessAgent, Template, WorkspaceAgent
from store.database import Connection
from store.errors import AttemptSuperseded, RegistryError
from store.records import AttemptState
from store.registry import Registry
from tests.support.records import a_failure, a_handle, a_task, provisioning, put, rows, running, starting

W = WorkspaceStatus


async def _begin(registry: Registry, task: TaskInput, attempt: int = 1, owner: str | None = None) -> datetime:
    workflow_id = owner or task_workflow_id(task.task_id)
    return await registry.workspaces.begin_attempt(task, attempt, host_id="here", workflow_id=workflow_id)


async def test_an_attempt_begins_once_however_often_it_is_begun(registry: Registry) -> None:
    """S21: also from two activity tasks at the same time."""
    task = await running(registry)
    times = await asyncio.gather(*(_begin(registry, task) for _ in range(5)))
    assert len(set(times)) == 1
    assert datetime.now(UTC) - times[0] < timedelta(minutes=1)
    assert [row["created_at"] for row in await rows(registry, "attempts")] == [times[0]]
    events = [(e.kind, e.current) for e in await registry.tasks.events(task.task_id)][3:]
    assert events == [
        (EventKind.WORKSPACE_STATUS, "pending"),
        (EventKind.WORKSPACE_STATUS, "provisioning"),
        (EventKind.TASK_STEP, "provisioning"),
    ]


async def test_a_workspace_that_has_only_begun_is_shown(registry: Registry) -> None:
    """S49: no address, no heartbeat, no verdict, no boot log."""
    task = await provisioning(registry)
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    assert (view.status, view.attempt, view.host_id, view.name) == (W.PROVISIONING, 1, "here", "tr-w-t-1-1")
    assert (view.harness_url, view.verdict, view.heartbeat_state, view.last_heartbeat_at) == (None, None, None, None)
    assert view.boot_log == []
    assert await registry.workspaces.list() == [view]
    assert await registry.workspaces.list(status=W.REMOVED) == []
    whole = await registry.tasks.get(task.task_id)
    assert whole
    assert whole.workspace == view
    assert await registry.workspaces.get("nobody") is None


@pytest.mark.parametrize("status", [s for s in W if s is not W.PROVISIONING])
async def test_an_attempt_that_is_no_longer_provisioning_does_not_begin_again(registry: Registry, status: W) -> None:
    """S07, S26: what came after it stays."""
    task = await provisioning(registry)
    await put(registry, "workspaces", task.workspace_id, status=status)
    before = await rows(registry, "events")
    with pytest.raises(AttemptSuperseded, match=f"does not want attempt 1: it is {status.value} at attempt 1"):
        await _begin(registry, task)
    assert not await registry.workspaces.is_wanted(task.workspace_id, 1)
    assert await rows(registry, "events") == before


async def test_a_newer_attempt_supersedes(registry: Registry) -> None:
    task = await provisioning(registry)
    await registry.workspaces.record_provisioned(a_handle(task))
    await registry.workspaces.record_heartbeat(task.workspace_id, 1, HeartbeatBody(state=HeartbeatState.BOOTING))
    await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.FAILED, a_failure(task))
    created_at = await _begin(registry, task, 2)
    assert created_at == await _begin(registry, task, 2)
    assert not await registry.workspaces.is_wanted(task.workspace_id, 1)
    assert await registry.workspaces.is_wanted(task.workspace_id, 2)
    with pytest.raises(AttemptSuperseded):
        await _begin(registry, task, 1)
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    assert (view.attempt, view.status, view.verdict, view.harness_url) == (2, W.PROVISIONING, None, None)
    assert (view.last_heartbeat_at, view.name) == (None, "tr-w-t-1-2")
    assert not await registry.workspaces.record_provisioned(a_handle(task, attempt=1))
    assert not await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.READY)
    assert await registry.workspaces.record_verdict(task.workspace_id, 2, Verdict.READY)


@pytest.mark.parametrize("status", [W.PROVISIONING, W.ONLINE, W.DEGRADED, W.STOPPING, W.REMOVED])
async def test_a_newer_attempt_needs_a_workspace_that_has_ended(registry: Registry, status: W) -> None:
    """S07: above all one that is not removed."""
    task = await provisioning(registry)
    await put(registry, "workspaces", task.workspace_id, status=status)
    with pytest.raises(AttemptSuperseded):
        await _begin(registry, task, 2)
    (row,) = await rows(registry, "workspaces")
    assert (row["status"], row["attempt"]) == (status, 1)
    assert len(await rows(registry, "attempts")) == 1


async def test_an_attempt_needs_its_task_its_owner_and_a_task_that_goes_on(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="is not recorded"):
        await _begin(registry, a_task("t-unknown"))
    task = await provisioning(registry)
    with pytest.raises(AttemptSuperseded, match="belongs to task-t-1"):
        await _begin(registry, task, owner="workspace-w-t-1")
    thief = await running(registry, a_task("t-thief", workspace_id=task.workspace_id))
    with pytest.raises(AttemptSuperseded, match="belongs to task-t-1"):
        await _begin(registry, thief)
    ended = await running(registry, a_task("t-ended"))
    await registry.tasks.finish(ended.task_id, TaskOutcome(status=TaskStatus.CANCELLED, error="cancelled"))
    with pytest.raises(AttemptSuperseded, match=r"has ended \(cancelled\)"):
        await _begin(registry, ended)


@pytest.mark.parametrize(
    ("readiness", "step"),
    [(Readiness.CALLBACK, TaskStep.WAITING_FOR_READY), (Readiness.IMMEDIATE, TaskStep.PROVISIONING)],
)
async def test_what_provisioning_made_is_recorded(registry: Registry, readiness: Readiness, step: TaskStep) -> None:
    task = await provisioning(registry)
    for _ in range(2):
        assert await registry.workspaces.record_provisioned(a_handle(task, readiness=readiness))
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.workspace
    assert (view.step, view.workspace.harness_url) == (step, "http://127.0.0.1:4711")
    assert len({s.step for s in view.steps}) == len(view.steps)


async def test_the_first_verdict_stands_whatever_comes_at_once(registry: Registry, database_url: str) -> None:
    """S06, S05: 24 verdicts of every kind, in every order of kinds, through two processes."""
    async with Registry.connect(database_url) as other:
        for number, kinds in enumerate(itertools.permutations(Verdict)):
            task = await provisioning(registry, a_task(f"t-{number}"))
            calls = [(verdict, r) for _ in range(4) for verdict in kinds for r in (registry, other)]
            answers = await asyncio.gather(
                *(r.workspaces.record_verdict(task.workspace_id, 1, v, a_failure(task)) for v, r in calls)
            )
            (winner,) = [verdict for (verdict, _), first in zip(calls, answers, strict=True) if first]
            state = await registry.workspaces.attempt_state(task.workspace_id)
            status = W.ONLINE if winner is Verdict.READY else W.FAILED
            assert state == AttemptState(task.workspace_id, 1, status, task_workflow_id(task.task_id), winner)
            events = [e for e in await registry.tasks.events(task.task_id) if e.workspace_id][2:]
            found = [(e.kind, e.current) for e in events]
            failed = [] if winner is Verdict.READY else [(EventKind.WORKSPACE_PROVISION_FAILED, None)]
            assert found == [(EventKind.VERDICT, winner), *failed, (EventKind.WORKSPACE_STATUS, status)]


async def test_a_verdict_stands_even_where_the_status_does_not(registry: Registry) -> None:
    """S06: whatever has brought the workspace back to where it was."""
    task = await provisioning(registry)
    assert await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.TIMED_OUT, a_failure(task))
    await put(registry, "workspaces", task.workspace_id, status=W.PROVISIONING)
    events = await rows(registry, "events")
    assert not await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.READY)
    assert await rows(registry, "events") == events
    state = await registry.workspaces.attempt_state(task.workspace_id)
    assert state
    assert (state.verdict, state.status) == (Verdict.TIMED_OUT, W.PROVISIONING)


@pytest.mark.parametrize(
    ("verdict", "source"),
    [(Verdict.FAILED, FailureSource.BOOTSTRAP), (Verdict.TIMED_OUT, FailureSource.PROVISION_TIMEOUT)],
)
async def test_a_verdict_without_a_reason_gets_one(registry: Registry, verdict: Verdict, source: FailureSource) -> None:
    """S40, S04: an error is never empty."""
    task = await provisioning(registry)
    assert await registry.workspaces.record_verdict(task.workspace_id, 1, verdict)
    (event,) = [e for e in await registry.tasks.events(task.task_id) if e.kind is EventKind.WORKSPACE_PROVISION_FAILED]
    assert event.detail["source"] == source
    assert event.detail["error"] == "local workspace w-t-1 never became ready: no reason was recorded"


async def test_a_verdict_of_nothing_is_none(registry: Registry) -> None:
    assert not await registry.workspaces.record_verdict("nobody", 1, Verdict.READY)
    assert await registry.workspaces.attempt_state("nobody") is None
    assert not await registry.workspaces.record_removed("nobody")
    assert not await registry.workspaces.suspect_leak("nobody", "gone")


async def test_a_release_without_a_workspace_still_moves_the_task(registry: Registry) -> None:
    task = await running(registry)
    assert not await registry.workspaces.begin_release(task.task_id, task.workspace_id)
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.step is TaskStep.RELEASING
    assert not await registry.workspaces.begin_release("nobody", task.workspace_id)


async def test_a_release_leaves_another_tasks_workspace_alone(registry: Registry) -> None:
    """S46."""
    mine = await provisioning(registry)
    other = await running(registry, a_task("t-other"))
    assert not await registry.workspaces.begin_release(other.task_id, mine.workspace_id)
    assert await registry.workspaces.is_wanted(mine.workspace_id, 1)


async def test_a_leak_is_suspected_once(registry: Registry) -> None:
    task = await provisioning(registry)
    await registry.workspaces.begin_release(task.task_id, task.workspace_id)
    answers = await asyncio.gather(*(registry.workspaces.suspect_leak(task.workspace_id, "away") for _ in range(4)))
    assert sorted(answers) == [False, False, False, True]
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    assert view.status is W.FAILED
    assert view.leak_suspected_at
    events = [e for e in await registry.tasks.events(task.task_id) if e.kind is EventKind.LEAK_SUSPECTED]
    assert [e.detail for e in events] == [{"reason": "away"}]
    assert await registry.workspaces.record_removed(task.workspace_id)


async def test_a_heartbeat_is_one_update_and_nothing_else(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """S09: it moves no status, no step and leaves no event."""
    task = await provisioning(registry)
    events = await rows(registry, "events")
    statements = _watch_statements(monkeypatch)
    body = HeartbeatBody(
        state=HeartbeatState.READY,
        reason="fi\0ne",
        sessions=["s-1"],
        pending=2,
        metrics={"load": float("nan"), "n": 1.5},
    )
    assert await registry.workspaces.record_heartbeat(task.workspace_id, 1, body)
    assert len(statements) == 1
    assert statements[0].split()[0] == "UPDATE"
    (row,) = await rows(registry, "workspaces")
    assert (row["status"], row["heartbeat_state"], row["heartbeat_reason"]) == ("provisioning", "ready", "fine")
    assert row["heartbeat"] == {"sessions": ["s-1"], "pending": 2, "metrics": {"load": None, "n": 1.5}}
    assert await rows(registry, "events") == events
    assert not await registry.workspaces.record_heartbeat(task.workspace_id, 2, body)
    assert not await registry.workspaces.record_heartbeat("nobody", 1, body)


async def test_the_state_for_a_callback_is_one_read_by_primary_key(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await provisioning(registry)
    statements = _watch_statements(monkeypatch)
    assert await registry.workspaces.attempt_state(task.workspace_id)
    (statement,) = statements

    async def explain(connection: Connection) -> str:
        await connection.execute("SET LOCAL enable_seqscan = off")  # an almost empty table would be read through
        plan = await connection.execute(f"EXPLAIN {statement}", {"workspace_id": "w"})  # pyright: ignore
        return "\n".join(str(row["QUERY PLAN"]) for row in await plan.fetchall())

    plan = await registry.tasks.database.run(explain, atomic=True)
    assert plan.startswith("Index Scan using workspaces_pkey on workspaces")
    assert "->" not in plan


def _watch_statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is executed from now on; a transaction's own BEGIN and COMMIT do not pass here."""
    statements: list[str] = []
    execute = Connection.execute

    async def watched(self: Connection, query: object, *args: object, **kwargs: object) -> object:
        statements.append(str(query).strip())
        return await execute(self, query, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr("psycopg.AsyncConnection.execute", watched)
    return statements


def _entry(number: int, **changes: object) -> BootLogBody:
    fields: dict[str, object] = {
        "step": "setup",
        "status": BootStatus.STARTED,
        "message": f"line {number}",
        "timestamp": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
    }
    return BootLogBody.model_validate({**fields, **changes})


async def test_a_boot_log_keeps_the_newest_50_entries(registry: Registry) -> None:
    """S39: and a repeat is stored once."""
    task = await provisioning(registry)
    for number in range(60):
        assert await registry.workspaces.append_boot_log(task.workspace_id, 1, _entry(number))
    assert await registry.workspaces.append_boot_log(task.workspace_id, 1, _entry(59))
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    assert [entry.message for entry in view.boot_log] == [f"line {number}" for number in range(10, 60)]
    assert not await registry.workspaces.append_boot_log(task.workspace_id, 2, _entry(61))
    assert not await registry.workspaces.append_boot_log("nobody", 1, _entry(61))


async def test_each_attempt_has_its_own_boot_log(registry: Registry) -> None:
    task = await provisioning(registry)
    for number in range(50):
        await registry.workspaces.append_boot_log(task.workspace_id, 1, _entry(number))
    await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.FAILED, a_failure(task))
    await _begin(registry, task, 2)
    await registry.workspaces.append_boot_log(task.workspace_id, 2, _entry(0))
    assert not await registry.workspaces.append_boot_log(task.workspace_id, 1, _entry(99))
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.workspace
    assert [entry.attempt for entry in view.workspace.boot_log] == [1] * 50 + [2]


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2024-05-01T00:00:00"])
async def test_no_boot_log_entry_makes_a_record_unreadable(registry: Registry, timestamp: str) -> None:
    """S36, S49: absurd clocks, NUL characters and endless details are what a broken workspace sends."""
    task = await provisioning(registry)
    entry = _entry(1, timestamp=timestamp, message="a\0b", detail="x" * 20_000 + "\0end", step="s\0")
    assert await registry.workspaces.append_boot_log(task.workspace_id, 1, entry)
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    (stored,) = view.boot_log
    assert (stored.step, stored.message) == ("s", "ab")
    assert stored.detail
    assert (len(stored.detail), stored.detail[-4:]) == (8192, "xend")
    assert stored.timestamp.utcoffset() == timedelta(0)


async def test_how_far_a_provisioning_is_goes_with_its_end(registry: Registry) -> None:
    task = await provisioning(registry)
    for end in ("provisioned", "said"):
        assert await registry.workspaces.record_progress(task.workspace_id, 1, "half\0way")
        assert await registry.tasks.news(task.task_id) == (None, "halfway")
        if end == "provisioned":
            await registry.workspaces.record_provisioned(a_handle(task))
        else:
            await registry.workspaces.record_progress(task.workspace_id, 1, "")
        assert await registry.tasks.news(task.task_id) == (None, None)
    assert len(await registry.tasks.events(task.task_id)) == 7  # none of them is for the progress


async def test_silence_counts_from_the_session_where_no_heartbeat_has_come(registry: Registry) -> None:
    """S28, S49: and never where no agent of ours is there to beat."""
    for task_id, container in (("mute", {}), ("bare", {"workspace_agent": WorkspaceAgent.NONE, "port": 80})):
        template = Template(
            name="of-an-image",
            backend=BackendKind.CONTAINER,
            agent=HarnessAgent(kind="harnessd", command=("harnessd",) if not container else ()),
            readiness=Readiness.PROBE,
            container=ContainerConfig(image="any", **container),
        )
        _, session = await starting(registry, a_task(task_id, template=template))
        await put(registry, "sessions", session, created_at=datetime.now(UTC) - timedelta(minutes=1))
    found = {beat.task_id: beat for beat in await registry.workspaces.beats()}
    assert found["mute"].silent_seconds >= 60
    assert found["bare"].silent_seconds == 0
    assert not any(beat.has_beaten for beat in found.values())
    await registry.workspaces.record_heartbeat("w-mute", 1, HeartbeatBody(state=HeartbeatState.READY))
    beat = next(beat for beat in await registry.workspaces.beats() if beat.task_id == "mute")
    assert beat.has_beaten
    assert beat.silent_seconds < 30
