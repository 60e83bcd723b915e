"""Sessions, and their output byte by byte."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from messages.names import session_id
from messages.signals import SessionFinished
from messages.statuses import EventKind, SessionStatus, TaskStep
from store.errors import OutputGap, RegistryError, UnknownSession
from store.records import OutputAppended
from store.registry import Registry
from tests.support.records import a_task, provisioning, rows, session_of, starting

Append = Callable[[int, str], Awaitable[OutputAppended]]


async def test_a_session_is_recorded_once(registry: Registry) -> None:
    """S21, S27: however often its creation is tried."""
    task, session = await starting(registry)
    names: dict[str, Any] = {"task_id": task.task_id, "workspace_id": task.workspace_id, "attempt": 1, "turn": 1}
    await asyncio.gather(*(registry.sessions.record_starting(session, **names) for _ in range(4)))
    assert sorted(await asyncio.gather(*(registry.sessions.record_running(session) for _ in range(3))))[-2:] == [
        False,
        True,
    ]
    events = [(e.kind, e.current) for e in await registry.tasks.events(task.task_id)][6:]
    assert events == [
        (EventKind.TASK_STEP, "creating_session"),
        (EventKind.SESSION_STATUS, "starting"),
        (EventKind.SESSION_STATUS, "running"),
        (EventKind.TASK_STEP, "session_running"),
    ]
    (row,) = await rows(registry, "sessions")
    assert (row["workspace_id"], row["attempt"], row["task_id"]) == (task.workspace_id, 1, task.task_id)


async def test_a_session_that_only_starts_is_shown(registry: Registry) -> None:
    """S49."""
    task, session = await starting(registry)
    view = await session_of(registry, task.task_id)
    assert view
    assert (view.id, view.status, view.turn) == (session, SessionStatus.STARTING, 1)
    assert (view.exit_code, view.started_at) == (None, None)
    assert not await registry.sessions.record_running("nobody")


async def test_a_session_needs_its_task(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="is not recorded"):
        await registry.sessions.record_starting("s-1", task_id="t", workspace_id="w", attempt=1, turn=1)


async def test_the_first_end_of_a_session_stands(registry: Registry) -> None:
    task, session = await starting(registry)
    await registry.sessions.record_running(session)

    def end(status: SessionStatus, **changes: object) -> SessionFinished:
        names = {"workspace_id": task.workspace_id, "attempt": 1, "session_id": session, "status": status}
        return SessionFinished.model_validate({**names, **changes})

    assert not await registry.sessions.finish(end(SessionStatus.COMPLETED, attempt=2))
    assert not await registry.sessions.finish(end(SessionStatus.COMPLETED, workspace_id="w-other"))
    assert not await registry.sessions.finish(end(SessionStatus.COMPLETED, session_id="s-other"))
    with pytest.raises(ValueError, match="cannot end as 'running'"):
        await registry.sessions.finish(end(SessionStatus.RUNNING))
    assert await registry.sessions.finish(
        end(SessionStatus.FAILED, exit_code=3, summary="do\0ne", error="exited with 3")
    )
    assert not await registry.sessions.finish(end(SessionStatus.COMPLETED, exit_code=0))
    view = await session_of(registry, task.task_id)
    assert view
    assert (view.status, view.exit_code, view.summary, view.error) == (SessionStatus.FAILED, 3, "done", "exited with 3")
    assert (await registry.tasks.events(task.task_id))[-1].detail == {"exit_code": 3, "error": "exited with 3"}


async def test_a_session_that_failed_silently_has_an_error(registry: Registry) -> None:
    """S40."""
    task, session = await starting(registry)
    end = SessionFinished(
        workspace_id=task.workspace_id, attempt=1, session_id=session, status=SessionStatus.INTERRUPTED
    )
    assert await registry.sessions.finish(end)
    view = await session_of(registry, task.task_id)
    assert view
    assert view.error == "The session ended as interrupted without a reason."


async def test_two_sessions_of_one_attempt_are_told_apart(registry: Registry) -> None:
    """S45: and the task shows the latest one, with its output."""
    task, first = await starting(registry)
    second = session_id(task.workspace_id, 1, 2)
    await registry.sessions.append_output(task.workspace_id, 1, first, 0, "first")
    for session in (first, second):
        await registry.sessions.record_starting(
            session, task_id=task.task_id, workspace_id=task.workspace_id, attempt=1, turn=1 if session == first else 2
        )
        end = SessionFinished(
            workspace_id=task.workspace_id, attempt=1, session_id=session, status=SessionStatus.COMPLETED
        )
        assert await registry.sessions.finish(end)
        assert not await registry.sessions.finish(end)
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.session
    assert view.session.id == second
    assert (await registry.sessions.read_output(task.task_id)).data == b""


@pytest.fixture
async def append(registry: Registry) -> Append:
    """Append to the output of the one session."""
    task, session = await starting(registry)

    async def append(offset: int, text: str) -> OutputAppended:
        return await registry.sessions.append_output(task.workspace_id, 1, session, offset, text)

    return append


async def test_output_is_stored_once_whatever_is_repeated(registry: Registry, append: Append) -> None:
    """S03 for output: repeats, overlaps and empty pieces; offsets count bytes."""
    assert await append(0, "héllo ") == OutputAppended(7, 7)
    assert await append(0, "héllo ") == OutputAppended(0, 7)
    assert await append(0, "héllo world") == OutputAppended(5, 12)
    assert await append(7, "world☃") == OutputAppended(3, 15)
    assert await append(3, "l") == OutputAppended(0, 15)
    assert await append(15, "") == OutputAppended(0, 15)
    piece = await registry.sessions.read_output("t-1")
    assert (piece.offset, piece.data.decode(), piece.next_offset) == (0, "héllo world☃", 15)
    assert [row["start"] for row in await rows(registry, "session_output")] == [0, 7, 12]


async def test_output_without_end_is_taken_and_kept_up_to_a_limit(
    registry: Registry, append: Append, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends it goes on undisturbed, and whoever reads it learns where it was cut."""
    monkeypatch.setattr("store.sessions.MAX_OUTPUT_BYTES", 10)
    await append(0, "0123456")
    await append(7, "789")  # full to the last byte, and nothing was cut yet
    assert (await registry.sessions.read_output("t-1")).data == b"0123456789"
    await append(10, "abc")
    for offset in (7, 13, 500):
        appended = await append(offset, "more")
        assert appended.stored_bytes == 0
        assert appended.next_offset >= offset + 4
    kept = (await registry.sessions.read_output("t-1")).data.decode()
    assert kept.startswith("0123456789\n[taskrunner keeps no more than the first ")
    assert kept.endswith(" of a session's output]\n")
    view = await registry.tasks.get("t-1")
    assert view
    assert view.session
    assert view.session.output_bytes == len(kept), "a follower knows when it has read all"


async def test_output_after_a_gap_is_refused(registry: Registry, append: Append) -> None:
    await append(0, "abc")
    with pytest.raises(OutputGap, match="send from there") as gap:
        await append(4, "e")
    assert gap.value.expected == 3
    with pytest.raises(OutputGap):
        await append(4, "")
    assert (await registry.sessions.read_output("t-1")).data == b"abc"


async def test_output_that_comes_many_times_at_once_is_stored_once(registry: Registry, append: Append) -> None:
    await asyncio.gather(*(append(0, "abc" * length) for length in range(1, 20)))
    assert (await registry.sessions.read_output("t-1")).data == b"abc" * 19


async def test_output_holds_any_character(registry: Registry, append: Append) -> None:
    """S36: NUL, and the end of a batch in the middle of nothing."""
    await append(0, "\0\x1b[31m\r\n\uffff\U0010ffff")
    data = (await registry.sessions.read_output("t-1")).data
    assert data.decode() == "\0\x1b[31m\r\n\uffff\U0010ffff"


async def test_output_of_an_unknown_session_is_refused(registry: Registry) -> None:
    """S35: also of another workspace's, or another attempt's."""
    task, session = await starting(registry)
    other, _ = await starting(registry, a_task("t-other"))
    for workspace, attempt, name in (
        (task.workspace_id, 1, "s-unknown"),
        (other.workspace_id, 1, session),
        (task.workspace_id, 2, session),
    ):
        with pytest.raises(UnknownSession, match="has no session"):
            await registry.sessions.append_output(workspace, attempt, name, 0, "x")
    assert await rows(registry, "session_output") == []


async def test_output_is_read_in_pieces_from_any_offset(registry: Registry, append: Append) -> None:
    """S39."""
    whole = b"".join(f"{number:05}\n".encode() for number in range(500))
    position = 0
    for size in (1, 2, 500, 7, 490, 2000):
        await append(position, whole[position : position + size].decode())
        position += size
    for offset in (0, 1, 2, 3, 502, 503, 999, 1000, 1001, 2999):
        for limit in (1, 3, 600, 10_000):
            piece = await registry.sessions.read_output("t-1", offset=offset, limit_bytes=limit)
            assert piece.data == whole[offset : min(offset + limit, 3000)], (offset, limit)
            assert (piece.offset, piece.next_offset) == (offset, offset + len(piece.data))
    for offset in (3000, 9999, 2**70):
        assert (await registry.sessions.read_output("t-1", offset=offset)).data == b""
    assert (await registry.sessions.read_output("t-1", offset=-5, limit_bytes=1)).data == b"0"


async def test_output_where_there_is_no_session_is_empty(registry: Registry) -> None:
    """S49."""
    task = await provisioning(registry)
    piece = await registry.sessions.read_output(task.task_id, offset=7)
    assert (piece.offset, piece.data, piece.next_offset) == (7, b"", 7)
    assert (await registry.sessions.read_output("nobody")).data == b""


async def test_the_step_follows_the_session(registry: Registry) -> None:
    task, session = await starting(registry)
    await registry.tasks.advance(task.task_id, TaskStep.RELEASING)
    await registry.sessions.record_running(session)
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.step is TaskStep.RELEASING  # never back
