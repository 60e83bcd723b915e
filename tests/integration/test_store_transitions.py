"""Every transition is guarded: a legal one leaves one event, an illegal one changes nothing."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from messages.names import compute_name
from messages.signals import SessionFinished
from messages.statuses import (
    SESSION_TRANSITIONS,
    TASK_TRANSITIONS,
    WORKSPACE_TRANSITIONS,
    EventKind,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import TaskOutcome
from store.database import Connection
from store.registry import Registry
from store.transitions import (
    lock_session,
    lock_task,
    lock_workspace,
    move_session,
    move_step,
    move_task,
    move_workspace,
    steps_before,
)
from tests.support.records import a_failure, a_handle, a_task, provisioning, put, queued, rows, running, starting

W, T, S = WorkspaceStatus, TaskStatus, SessionStatus


class _Record:
    """One row of a table, and what acting on it does."""

    def __init__(self, registry: Registry, table: str, record_id: str) -> None:
        self._registry, self._table, self._id = registry, table, record_id

    async def put(self, **columns: Any) -> None:
        await put(self._registry, self._table, self._id, **columns)

    async def _row(self) -> dict[str, Any]:
        return next(row for row in await rows(self._registry, self._table) if row["id"] == self._id)

    async def act(self, action: Awaitable[bool]) -> tuple[bool, dict[str, Any], int]:
        """What the action returned, which columns it changed, and how many events it left."""
        before, events = await self._row(), await rows(self._registry, "events")
        result = await action
        after, events_after = await self._row(), await rows(self._registry, "events")
        changed = {name: after[name] for name in after if after[name] != before[name]}
        return result, changed, len(events_after) - len(events)


def _in_transaction(registry: Registry, move: Callable[[Connection], Awaitable[bool]]) -> Awaitable[bool]:
    return registry.tasks.database.run(move, atomic=True)


async def test_a_task_takes_each_legal_transition_and_no_other(registry: Registry) -> None:
    """S40: every pair of statuses."""
    task = await queued(registry)
    record = _Record(registry, "tasks", task.task_id)

    async def move(connection: Connection, to: TaskStatus) -> bool:
        locked = await lock_task(connection, task.task_id)
        assert locked
        return await move_task(connection, locked, to)

    for origin, to in itertools.product(T, T):
        await record.put(status=origin)
        outcome = await record.act(_in_transaction(registry, partial(move, to=to)))
        if to in TASK_TRANSITIONS[origin]:
            assert outcome == (True, {"status": to}, 1), (origin, to)
            last = (await registry.tasks.events(task.task_id))[-1]
            assert (last.kind, last.previous, last.current) == (EventKind.TASK_STATUS, origin, to)
        else:
            assert outcome == (False, {}, 0), (origin, to)


async def test_a_workspace_takes_each_legal_transition_and_no_other(registry: Registry) -> None:
    """S40, S07: every pair of statuses; nothing leads out of ``removed``."""
    task = await provisioning(registry)
    record = _Record(registry, "workspaces", task.workspace_id)

    async def move(connection: Connection, to: WorkspaceStatus) -> bool:
        locked = await lock_workspace(connection, task.workspace_id)
        assert locked
        return await move_workspace(connection, locked, to)

    for origin, to in itertools.product(W, W):
        await record.put(status=origin)
        outcome = await record.act(_in_transaction(registry, partial(move, to=to)))
        if to in WORKSPACE_TRANSITIONS[origin]:
            assert outcome == (True, {"status": to}, 1), (origin, to)
            last = (await registry.tasks.events(task.task_id))[-1]
            assert (last.kind, last.previous, last.current) == (EventKind.WORKSPACE_STATUS, origin, to)
            assert last.workspace_id == task.workspace_id
        else:
            assert outcome == (False, {}, 0), (origin, to)


async def test_a_session_takes_each_legal_transition_and_no_other(registry: Registry) -> None:
    """S40: every pair of statuses."""
    task, session = await starting(registry)
    record = _Record(registry, "sessions", session)

    async def move(connection: Connection, to: SessionStatus) -> bool:
        locked = await lock_session(connection, session)
        assert locked
        return await move_session(connection, locked, to)

    for origin, to in itertools.product(S, S):
        await record.put(status=origin)
        outcome = await record.act(_in_transaction(registry, partial(move, to=to)))
        if to in SESSION_TRANSITIONS[origin]:
            assert outcome == (True, {"status": to}, 1), (origin, to)
            last = (await registry.tasks.events(task.task_id))[-1]
            assert (last.kind, last.previous, last.current) == (EventKind.SESSION_STATUS, origin, to)
            assert last.session_id == session
        else:
            assert outcome == (False, {}, 0), (origin, to)


async def test_a_step_only_goes_forward(registry: Registry) -> None:
    task = await running(registry)
    record = _Record(registry, "tasks", task.task_id)
    order = list(TaskStep)
    for origin, to in itertools.product([None, *order], order):
        await record.put(step=origin)
        outcome = await record.act(registry.tasks.advance(task.task_id, to))
        forward = origin is None or order.index(origin) < order.index(to)
        followup = (origin, to) == (TaskStep.AWAITING_FOLLOWUP, TaskStep.SESSION_RUNNING)
        assert outcome == ((True, {"step": to}, 1) if forward or followup else (False, {}, 0)), (origin, to)


async def test_the_step_of_a_task_that_does_not_run_never_changes(registry: Registry) -> None:
    task = await running(registry)
    record = _Record(registry, "tasks", task.task_id)
    for status in set(T) - {T.RUNNING}:
        await record.put(status=status)
        assert await record.act(registry.tasks.advance(task.task_id, TaskStep.RELEASING)) == (False, {}, 0), status


def test_steps_before_is_the_order_of_the_enumeration() -> None:
    assert steps_before(TaskStep.PREFLIGHT) == []
    assert steps_before(TaskStep.RELEASING) == list(TaskStep)[:-1]
    assert steps_before(TaskStep.VERIFYING) == list(TaskStep)[:3]


async def test_finishing_a_task(registry: Registry) -> None:
    """S40: the outcome is written with the transition, or not at all."""
    task = await running(registry)
    record = _Record(registry, "tasks", task.task_id)
    for origin, to in itertools.product(T, [T.COMPLETED, T.FAILED, T.CANCELLED]):
        await record.put(status=origin, error=None, finished_at=None)
        outcome = TaskOutcome(status=to, error="because")
        finished, changed, events = await record.act(registry.tasks.finish(task.task_id, outcome))
        if to in TASK_TRANSITIONS[origin]:
            assert (finished, events) == (True, 1), (origin, to)
            assert changed.keys() == {"status", "error", "finished_at"}
        else:
            assert (finished, changed, events) == (False, {}, 0), (origin, to)


async def test_a_task_cannot_be_finished_with_a_status_that_is_not_final(registry: Registry) -> None:
    task = await running(registry)
    await registry.tasks.finish(task.task_id, TaskOutcome(status=T.FAILED, error="because"))
    for status in (T.QUEUED, T.RUNNING):
        with pytest.raises(ValueError, match="cannot end as"):
            await registry.tasks.finish(task.task_id, TaskOutcome(status=status))


async def test_only_a_queued_task_begins(registry: Registry) -> None:
    task = await queued(registry)
    record = _Record(registry, "tasks", task.task_id)
    for origin in T:
        await record.put(status=origin, step=None, started_at=None)
        begun, changed, events = await record.act(registry.tasks.begin(task.task_id))
        if origin is T.QUEUED:
            assert (begun, events) == (True, 2)  # two transitions: status and step
            assert changed.keys() == {"status", "step", "started_at"}
        else:
            assert (begun, changed, events) == (False, {}, 0), origin


async def test_a_verdict_counts_only_while_provisioning(registry: Registry) -> None:
    """S07: a verdict that comes too late brings nothing back; ``removed`` is final."""
    for number, (origin, verdict) in enumerate(itertools.product(W, Verdict)):
        task = await provisioning(registry, a_task(f"t-{number}"))
        record = _Record(registry, "workspaces", task.workspace_id)
        await record.put(status=origin)
        first, changed, events = await record.act(
            registry.workspaces.record_verdict(task.workspace_id, 1, verdict, a_failure(task))
        )
        if origin is W.PROVISIONING:
            status = W.ONLINE if verdict is Verdict.READY else W.FAILED
            assert (first, changed) == (True, {"status": status, "verdict": verdict})
            assert events == (2 if verdict is Verdict.READY else 3)  # verdict, status, and the failure
        else:
            assert (first, changed, events) == (False, {}, 0), (origin, verdict)


async def test_what_a_workspace_does_from_each_status(registry: Registry) -> None:
    """S07, S40: nothing that the registry offers leads out of ``removed``."""
    task = await provisioning(registry)
    name, workspaces = task.workspace_id, registry.workspaces
    record = _Record(registry, "workspaces", name)
    await put(registry, "tasks", task.task_id, step=TaskStep.RELEASING)  # so that only the workspace may move

    for origin in W:

        async def outcome(action: Awaitable[bool], origin: WorkspaceStatus = origin) -> tuple[bool, str, int]:
            await record.put(status=origin, leak_suspected_at=None)
            result, changed, events = await record.act(action)
            return result, changed.get("status", origin), events

        def expected(to: WorkspaceStatus, origin: WorkspaceStatus = origin) -> tuple[bool, str, int]:
            return (True, to, 1) if to in WORKSPACE_TRANSITIONS[origin] else (False, origin, 0)

        assert await outcome(workspaces.begin_release(task.task_id, name)) == expected(W.STOPPING)
        assert await outcome(workspaces.record_removed(name)) == expected(W.REMOVED)
        suspected = {W.REMOVED: (False, W.REMOVED, 0), W.FAILED: (True, W.FAILED, 1)}.get(origin, (True, W.FAILED, 2))
        assert await outcome(workspaces.suspect_leak(name, "host away")) == suspected
        recorded = (origin is W.PROVISIONING, origin, 0)
        assert await outcome(workspaces.record_provisioned(a_handle(task))) == recorded


async def test_what_a_session_does_from_each_status(registry: Registry) -> None:
    """S40."""
    task, session = await starting(registry)
    record = _Record(registry, "sessions", session)
    await put(registry, "tasks", task.task_id, step=TaskStep.RELEASING)

    for origin, to in itertools.product(S, set(S) - {S.STARTING}):
        await record.put(status=origin, started_at=None, finished_at=None, error=None)
        if to is S.RUNNING:
            action = registry.sessions.record_running(session)
        else:
            end = SessionFinished(workspace_id=task.workspace_id, attempt=1, session_id=session, status=to)
            action = registry.sessions.finish(end)
        done, changed, events = await record.act(action)
        if to in SESSION_TRANSITIONS[origin]:
            assert (done, changed["status"], events) == (True, to, 1), (origin, to)
        else:
            assert (done, changed, events) == (False, {}, 0), (origin, to)


async def test_transitions_of_one_task_wait_for_each_other(registry: Registry) -> None:
    """S39: event ids follow the order of commits, so a reader that continues after an id never misses an event."""
    task = await provisioning(registry)
    held, go = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> None:
        locked = await lock_task(connection, task.task_id)
        assert locked
        await move_step(connection, locked, TaskStep.VERIFYING)
        held.set()
        await go.wait()

    first = asyncio.create_task(registry.tasks.database.run(slow, atomic=True))
    await held.wait()
    second = asyncio.create_task(registry.workspaces.record_removed(task.workspace_id))
    assert not (await asyncio.wait({second}, timeout=0.3))[0]
    go.set()
    await first
    assert await second
    kinds = [(event.kind, event.current) for event in await registry.tasks.events(task.task_id)]
    assert kinds[-2:] == [(EventKind.TASK_STEP, "verifying"), (EventKind.WORKSPACE_STATUS, "removed")]


async def test_the_names_of_events_are_those_of_their_records(registry: Registry) -> None:
    task, session = await starting(registry, a_task("t-names"))
    events = await registry.tasks.events(task.task_id)
    assert {event.task_id for event in events} == {task.task_id}
    assert {event.workspace_id for event in events if event.kind is EventKind.WORKSPACE_STATUS} == {task.workspace_id}
    assert {event.session_id for event in events if event.kind is EventKind.SESSION_STATUS} == {session}
    view = await registry.workspaces.get(task.workspace_id)
    assert view
    assert view.name == compute_name(task.workspace_id, 1)
