"""Callbacks over a real socket, with a real Temporal and a real PostgreSQL."""

import asyncio
import json
import resource
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from messages.callbacks import LOG_TAIL_BYTES
from messages.names import PROVISIONING_FAILED, SESSION_FINISHED, WORKSPACE_READY, session_id, task_workflow_id
from messages.signals import DEFAULT_FAILURE, ProvisioningFailed, SessionFinished, WorkspaceReady
from messages.statuses import BackendKind, FailureSource, Verdict, WorkspaceStatus
from messages.tasks import ProvisionFailure
from messages.tokens import verify_callback_token
from tests.support.api import API_TOKEN, RunningApi, Workspace, signals, unique
from tests.support.records import rows

pytest_plugins = ["tests.support.temporal", "tests.support.api"]


def _failure(workspace: Workspace) -> ProvisionFailure:
    return ProvisionFailure(
        source=FailureSource.BOOTSTRAP,
        backend=BackendKind.LOCAL,
        workspace_id=workspace.id,
        attempt=workspace.attempt,
        error="it broke",
    )


def _bodies(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return something that every callback route takes, by what its path ends in."""
    timestamp = datetime.now(UTC).isoformat()
    return {
        "ready": {},
        "provisioning-failed": {},
        "heartbeat": {"state": "ready"},
        "boot-log": {"step": "a", "status": "started", "message": "b", "timestamp": timestamp},
        f"sessions/{workspace.session}/output": {"offset": 0, "chunks": ["x"]},
        f"sessions/{workspace.session}/finished": {"status": "completed"},
    }


async def _post(api: RunningApi, workspace: Workspace, what: str, body: Any = None) -> httpx.Response:
    return await api.anyone.post(f"{workspace.path}/{what}", json=body or {}, headers=workspace.headers)


async def _many_at_once(workspace: Workspace, what: str, count: int) -> list[tuple[int, bytes]]:
    """Send one callback over ``count`` connections, all opened before the first request is sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + 200), hard))
    url = urlsplit(f"{workspace.path}/{what}")
    assert url.hostname
    assert url.port
    connections = [await asyncio.open_connection(url.hostname, url.port) for _ in range(count)]
    request = (
        f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {workspace.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    ).encode()
    for _, writer in connections:
        writer.write(request)
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    for _, writer in connections:
        writer.close()
        await writer.wait_closed()
    return [(int(answer.split(b" ", 2)[1]), answer.rpartition(b"\r\n\r\n")[2]) for answer in answers]


async def test_repeats_in_turn_and_at_once_are_answered_alike_and_leave_one_signal(api: RunningApi) -> None:
    """S03: 10 in turn, then 1,000 at once."""
    workspace = await api.workspace()
    in_turn = [await _post(api, workspace, "ready", {"agent_version": "1.2.3"}) for _ in range(10)]
    assert {(answer.status_code, answer.text) for answer in in_turn} == {(200, '{"success":true}')}
    at_once = Counter(await _many_at_once(workspace, "ready", 1000))
    assert at_once == {(200, b'{"success":true}'): 1000}
    expected = WorkspaceReady(workspace_id=workspace.id, attempt=1, agent_version="1.2.3")
    assert await signals(workspace.workflow) == [(WORKSPACE_READY, expected.model_dump(mode="json"))]


async def test_ready_is_answered_with_success_even_after_removal(api: RunningApi) -> None:
    """S03: the answer stays the same while the token lives."""
    workspace = await api.workspace()
    assert await api.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
    assert (await _post(api, workspace, "ready")).json() == {"success": True}
    assert await api.registry.workspaces.begin_release(workspace.task.task_id, workspace.id)
    assert await api.registry.workspaces.record_removed(workspace.id)
    await workspace.workflow.terminate()
    answer = await _post(api, workspace, "ready")
    assert (answer.status_code, answer.json()) == (200, {"success": True})


async def test_a_callback_right_after_the_row_exists_is_accepted(api: RunningApi) -> None:
    """S11: its token is made from the attempt's row, which is written before the compute is created."""
    workspace = await api.workspace()
    created_at = [row["created_at"] for row in await rows(api.registry, "attempts")]
    assert created_at == [workspace.created_at]
    assert (await _post(api, workspace, "ready")).status_code == 200


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.TIMED_OUT])
async def test_ready_after_another_verdict_is_told_so(api: RunningApi, verdict: Verdict) -> None:
    """S07: nothing comes back to life."""
    workspace = await api.workspace()
    assert await api.registry.workspaces.record_verdict(workspace.id, 1, verdict, _failure(workspace))
    answer = await _post(api, workspace, "ready")
    assert (answer.status_code, answer.json()) == (200, {"success": False, "reason": "workspace_not_running"})
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert (view.status, view.verdict) == (WorkspaceStatus.FAILED, verdict)


async def test_failed_five_times_is_one_signal_and_after_ready_it_is_refused(api: RunningApi) -> None:
    """S05."""
    workspace = await api.workspace()
    body = {"errorMessage": "no disk", "logTail": "x" * 20_000 + "end"}
    answers = [await _post(api, workspace, "provisioning-failed", body) for _ in range(5)]
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, '{"success":true}')}
    ((name, argument),) = await signals(workspace.workflow)
    signal = ProvisioningFailed.model_validate(argument)
    assert (name, signal.error) == (PROVISIONING_FAILED, "no disk")
    assert len(signal.log_tail) == LOG_TAIL_BYTES
    assert signal.log_tail.endswith("end")
    assert await api.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
    answer = await _post(api, workspace, "provisioning-failed")
    assert (answer.status_code, answer.json()) == (200, {"success": False, "reason": "workspace_not_creating"})


async def test_an_empty_failure_gets_a_default_text(api: RunningApi) -> None:
    """S04."""
    workspace = await api.workspace()
    answer = await api.anyone.post(f"{workspace.path}/provisioning-failed", headers=workspace.headers)
    assert answer.status_code == 200
    ((_, argument),) = await signals(workspace.workflow)
    assert ProvisioningFailed.model_validate(argument).error == DEFAULT_FAILURE


async def test_when_the_workflow_has_closed_the_present_owner_is_signalled(api: RunningApi, database_url: str) -> None:
    workspace = await api.workspace()
    heir = await api.temporal.start_workflow("TaskRunner", id=unique("task-heir"), task_queue=unique("nobody"))
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("UPDATE workspaces SET owner_workflow_id = %s WHERE id = %s", (heir.id, workspace.id))
    await workspace.workflow.terminate()
    assert (await _post(api, workspace, "ready")).json() == {"success": True}
    assert [name for name, _ in await signals(heir)] == [WORKSPACE_READY]


async def test_an_unknown_workspace_is_404(api: RunningApi) -> None:
    """S36: a valid token for a workspace that the registry does not know."""
    stranger = await api.workspace()
    unknown = Workspace(
        stranger.task.model_copy(update={"workspace_id": "w-unknown", "task_id": unique("t")}),
        1,
        api.keys,
        stranger.created_at,
        stranger.workflow,
        api.url,
    )
    for what, body in _bodies(unknown).items():
        answer = await _post(api, unknown, what, body)
        assert (what, answer.status_code) == (what, 404)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "w-unknown" in answer.json()["detail"]
    assert await signals(stranger.workflow) == []


async def test_an_older_attempt_is_refused_by_every_route(api: RunningApi, database_url: str) -> None:
    """S35: 403, and nothing is recorded."""
    workspace = await api.with_session(await api.workspace())
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("UPDATE workspaces SET attempt = 2 WHERE id = %s", (workspace.id,))
    for what, body in _bodies(workspace).items():
        answer = await _post(api, workspace, what, body)
        assert (what, answer.status_code) == (what, 403)
        assert "attempt 1" in answer.json()["detail"]
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert (view.last_heartbeat_at, view.boot_log) == (None, [])
    assert (await api.registry.sessions.read_output(workspace.task.task_id)).data == b""


async def test_boot_log_and_heartbeat_are_recorded(api: RunningApi) -> None:
    workspace = await api.workspace()
    entry = {
        "step": "setup",
        "status": "failed",
        "message": "no\0pe",
        "detail": "y" * 9000,
        "timestamp": "2026-01-02T03:04:05",
    }
    answer = await _post(api, workspace, "boot-log", entry)
    assert (answer.status_code, answer.json()) == (202, {"success": True, "reason": None})
    beat = {"state": "degraded", "reason": "disk", "pending": 10**30, "metrics": {"load": 1.5}, "future": [1]}
    answer = await _post(api, workspace, "heartbeat", beat)
    assert (answer.status_code, answer.json()) == (200, {})
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert (view.heartbeat_state, view.heartbeat_reason) == ("degraded", "disk")
    assert view.status is WorkspaceStatus.PROVISIONING
    (line,) = view.boot_log
    assert (line.step, line.message, len(line.detail or "")) == ("setup", "nope", LOG_TAIL_BYTES)
    assert await signals(workspace.workflow) == []


async def test_a_token_past_half_of_its_life_is_renewed_by_a_heartbeat(api: RunningApi) -> None:
    workspace = await api.workspace()
    for age, renewed in ((timedelta(hours=11), False), (timedelta(hours=13), True)):
        answer = await api.anyone.post(
            f"{workspace.path}/heartbeat",
            json={"state": "booting"},
            headers={"Authorization": f"Bearer {workspace.token_of(1, age=age)}"},
        )
        assert answer.status_code == 200
        assert ("refreshed_token" in answer.json()) is renewed
    claims = verify_callback_token(api.keys, answer.json()["refreshed_token"])
    assert (claims.sub, claims.att, claims.wf) == (workspace.id, 1, workspace.workflow_id)
    assert claims.exp > (datetime.now(UTC) + timedelta(hours=23)).timestamp()


async def test_output_is_stored_once_and_gaps_are_named(api: RunningApi) -> None:
    workspace = await api.with_session(await api.workspace())
    path = f"sessions/{workspace.session}/output"
    for _ in range(3):
        answer = await _post(api, workspace, path, {"offset": 0, "chunks": ["héllo ", "\0", "wörld\n"]})
        assert answer.status_code == 202
    stored = "héllo \0wörld\n".encode()
    assert (await api.registry.sessions.read_output(workspace.task.task_id)).data == stored
    answer = await _post(api, workspace, path, {"offset": 100, "chunks": ["later"]})
    assert (answer.status_code, answer.json()["expected_offset"]) == (409, len(stored))
    answer = await _post(api, workspace, "sessions/s-unknown/output", {"offset": 0, "chunks": ["x"]})
    assert answer.status_code == 404


async def test_the_end_of_a_session_is_signalled_once(api: RunningApi) -> None:
    workspace = await api.with_session(await api.workspace())
    body = {"status": "failed", "exitCode": 3, "summary": "s" * 10_000, "errorMessage": "exited with 3"}
    for _ in range(3):
        answer = await _post(api, workspace, f"sessions/{workspace.session}/finished", body)
        assert (answer.status_code, answer.json()) == (200, {"success": True})
    ((name, argument),) = await signals(workspace.workflow)
    end = SessionFinished.model_validate(argument)
    assert (name, end.status, end.exit_code, end.error) == (SESSION_FINISHED, "failed", 3, "exited with 3")
    assert 0 < len(end.summary) <= 4096


async def test_texts_that_are_too_long_are_cut_and_never_refused(api: RunningApi) -> None:
    """A refusal is final: what a workspace has to say would be lost for the length of its words."""
    workspace = await api.with_session(await api.workspace())
    long = "x" * 5000
    said: dict[str, dict[str, Any]] = {
        "ready": {"agent_version": long},
        "heartbeat": {"state": "degraded", "reason": long},
        "boot-log": {"step": long, "status": "failed", "message": long, "timestamp": "2026-01-02T03:04:05"},
        "provisioning-failed": {"error_message": long},
        f"sessions/{workspace.session}/finished": {"status": "failed", "summary": long, "error_message": long},
    }
    for what, body in said.items():
        assert (what, (await _post(api, workspace, what, body)).is_success) == (what, True)
    arrived = dict(await signals(workspace.workflow))
    assert WorkspaceReady.model_validate(arrived[WORKSPACE_READY]).agent_version == long[:4096]
    assert ProvisioningFailed.model_validate(arrived[PROVISIONING_FAILED]).error == long[:4096]
    end = SessionFinished.model_validate(arrived[SESSION_FINISHED])
    assert (end.error, end.summary) == (long[:4096], long[:4096])
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert view.heartbeat_reason == long[:4096]
    assert [(line.step, line.message) for line in view.boot_log] == [(long[:100], long[:4096])]


async def test_a_boot_step_without_a_name_is_kept_all_the_same(api: RunningApi) -> None:
    workspace = await api.workspace()
    for step in ("", " "):
        body = {"step": step, "status": "failed", "message": step, "timestamp": "2026-01-02T03:04:05"}
        assert (await _post(api, workspace, "boot-log", body)).status_code == 202
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert [(line.step, line.status.value) for line in view.boot_log] == [("unnamed", "failed")]


async def test_ends_of_sessions_that_never_were_reach_no_workflow(api: RunningApi) -> None:
    """S36: unknown ids."""
    workspace = await api.with_session(await api.workspace())
    other = await api.with_session(await api.workspace())
    for session in ("s-nope", other.session, "..%2Fx", "%00", "S-UPPER"):
        answer = await _post(api, workspace, f"sessions/{session}/finished", {"status": "completed"})
        assert (session, answer.status_code) == (session, 404)
    assert await signals(workspace.workflow) == []


async def test_two_sessions_of_one_attempt_end_apart(api: RunningApi) -> None:
    """S45: the second one's end is not taken for a repeat of the first's."""
    workspace = await api.with_session(await api.workspace())
    second = session_id(workspace.id, 1, 2)
    await api.registry.sessions.record_starting(
        second, task_id=workspace.task.task_id, workspace_id=workspace.id, attempt=1, turn=2
    )
    for session in (workspace.session, second, workspace.session, second):
        await _post(api, workspace, f"sessions/{session}/finished", {"status": "completed"})
    assert [argument["session_id"] for _, argument in await signals(workspace.workflow)] == [workspace.session, second]


async def test_addresses_in_callbacks_are_never_requested(api: RunningApi) -> None:
    """S38."""
    visits: list[Any] = []

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(visited, "127.0.0.1", 0) as trap:
        address = f"http://127.0.0.1:{trap.sockets[0].getsockname()[1]}/x"
        workspace = await api.with_session(await api.workspace())
        extra = dict.fromkeys(("url", "harness_url", "harnessUrl", "address", "callback_url", "host"), address)
        stamp = {"timestamp": datetime.now(UTC).isoformat()}
        bodies: dict[str, dict[str, Any]] = {
            "ready": {"agent_version": address, "tls_certificate": address},
            "heartbeat": {"state": "ready", "reason": address},
            "boot-log": {"step": "a", "status": "started", "message": address, "detail": address, **stamp},
            f"sessions/{workspace.session}/output": {"offset": 0, "chunks": [address]},
            f"sessions/{workspace.session}/finished": {
                "status": "failed",
                "summary": address,
                "error_message": address,
            },
            "provisioning-failed": {"error_message": address, "log_tail": address},
        }
        for what, body in bodies.items():
            assert (await _post(api, workspace, what, body | extra)).is_success
        view = await api.registry.workspaces.get(workspace.id)
        assert view is not None
        assert view.harness_url is None
    assert visits == []


async def test_the_answers_are_json(api: RunningApi) -> None:
    workspace = await api.workspace()
    answer = await _post(api, workspace, "ready")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content) == {"success": True}
    assert workspace.workflow_id == task_workflow_id(workspace.task.task_id)
    assert API_TOKEN not in answer.text
