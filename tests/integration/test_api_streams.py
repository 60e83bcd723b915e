"""Following a task over a real socket: its events and its output."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from messages.activities import WorkspaceHandle
from messages.keys import Keyring
from messages.names import TASK_QUEUE, compute_name
from messages.statuses import BackendKind, Readiness, TaskStatus, TaskStep, Verdict
from messages.tasks import TaskOutcome
from store.registry import Registry
from tests.support.api import API_TOKEN, RunningApi, Workspace, eventually, serving

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

DONE = TaskOutcome(status=TaskStatus.COMPLETED)


async def _sse(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            event = json.loads(fields["data"])
            if fields["event"] == "progress":
                assert "id" not in fields
                yield {"kind": "retry" if event.get("retry") else "progress", "current": event["text"], "id": None}
                fields = {}
                continue
            assert (fields["id"], fields["event"]) == (str(event["id"]), event["kind"])
            yield event
            fields = {}


async def _append(api: RunningApi, workspace: Workspace, offset: int, text: str) -> None:
    answer = await api.anyone.post(
        f"{workspace.path}/sessions/{workspace.session}/output",
        json={"offset": offset, "chunks": [text]},
        headers=workspace.headers,
    )
    assert answer.status_code == 202


async def test_a_late_subscriber_gets_what_is_kept_then_what_comes_until_the_end(api: RunningApi) -> None:
    """S39, and the stream ends with the task."""
    workspace = await api.workspace()
    task_id = workspace.task.task_id
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(20), api.user.stream("GET", f"/api/tasks/{task_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for event in _sse(response):
            seen.append(event)
            if event["current"] == "provisioning" and event["kind"] == "workspace_status":
                await api.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
            if event["current"] == "online":
                await api.registry.tasks.finish(task_id, DONE)
    kept = await api.registry.tasks.events(task_id)
    assert [event["id"] for event in seen] == [event.id for event in kept]
    assert (seen[0]["kind"], seen[0]["current"]) == ("task_status", "queued")
    assert (seen[-1]["kind"], seen[-1]["current"]) == ("task_status", "completed")


async def test_last_event_id_resumes_without_gap_or_repeat(api: RunningApi) -> None:
    """S39."""
    workspace = await api.workspace()
    path = f"/api/tasks/{workspace.task.task_id}/events"
    first: list[int] = []
    async with asyncio.timeout(20), api.user.stream("GET", path) as response:
        async for event in _sse(response):
            first.append(event["id"])
            if len(first) == 2:
                break
    await api.registry.tasks.finish(workspace.task.task_id, DONE)
    async with asyncio.timeout(20), api.user.stream("GET", path, headers={"Last-Event-ID": str(first[-1])}) as response:
        rest = [event["id"] async for event in _sse(response)]
    assert first + rest == [event.id for event in await api.registry.tasks.events(workspace.task.task_id)]
    over = await api.user.get(path, headers={"Last-Event-ID": str(rest[-1])})
    assert (over.status_code, over.content) == (204, b"")
    for bad in ("x", "-1", "1" * 30, "1.5"):
        assert (await api.user.get(path, headers={"Last-Event-ID": bad})).status_code == 400


async def test_events_can_be_had_without_following(api: RunningApi) -> None:
    workspace = await api.workspace()
    async with asyncio.timeout(10):
        answer = await api.user.get(f"/api/tasks/{workspace.task.task_id}/events?follow=false")
    assert answer.text.count("\ndata: ") == len(await api.registry.tasks.events(workspace.task.task_id))


async def test_an_event_reaches_its_followers_at_once(api: RunningApi) -> None:
    """Woken by the registry's notification, not by a clock."""
    workspace = await api.workspace()
    task_id = workspace.task.task_id
    handle = WorkspaceHandle(
        workspace_id=workspace.id,
        attempt=1,
        backend=BackendKind.LOCAL,
        name=compute_name(workspace.id, 1),
        task_queue=TASK_QUEUE,
        harness_url="http://127.0.0.1:1",
        readiness=Readiness.CALLBACK,
    )
    async with asyncio.timeout(20), api.user.stream("GET", f"/api/tasks/{task_id}/events") as response:
        async for event in _sse(response):
            if event["current"] == "provisioning" and event["kind"] == "workspace_status":
                await eventually(lambda: api.someone_waits(task_id))
                recorded = time.monotonic()
                assert await api.registry.workspaces.record_provisioned(handle)
            if event["current"] == TaskStep.WAITING_FOR_READY:
                assert time.monotonic() - recorded < 0.5
                break


async def test_a_provisioning_that_takes_time_says_how_far_it_is(api: RunningApi) -> None:
    """S39: the newest sentence first, then each new one, and none once it is over; what is kept is none of them."""
    workspace = await api.workspace()
    task_id, workspaces = workspace.task.task_id, api.registry.workspaces
    assert await workspaces.record_progress(workspace.id, 1, "fetching: 1 %")
    assert await workspaces.record_progress(workspace.id, 1, "fetching: 2 %")
    assert not await workspaces.record_progress(workspace.id, 2, "another attempt's")
    shown = (await api.user.get(f"/api/workspaces/{workspace.id}")).json()["progress"]
    assert shown == (await api.user.get(f"/api/tasks/{task_id}")).json()["workspace"]["progress"] == "fetching: 2 %"
    seen: list[str] = []
    async with asyncio.timeout(20), api.user.stream("GET", f"/api/tasks/{task_id}/events") as response:
        async for event in _sse(response):
            if event["kind"] == "progress":
                seen.append(event["current"])
            if event["current"] == "fetching: 2 %":
                await workspaces.record_progress(workspace.id, 1, "fetching: 3 %")
            elif event["current"] == "fetching: 3 %":
                await workspaces.record_verdict(workspace.id, 1, Verdict.READY)
            elif event["current"] == "online":
                assert not await workspaces.record_progress(workspace.id, 1, "too late")
                await api.registry.tasks.finish(task_id, DONE)
    assert seen == ["fetching: 2 %", "fetching: 3 %"]
    assert (await api.user.get(f"/api/workspaces/{workspace.id}")).json()["progress"] is None


async def test_why_a_step_is_tried_again_is_told_while_it_is(api: RunningApi) -> None:
    """S39: each reason once, also to who comes later."""
    workspace = await api.workspace()
    task_id, tasks = workspace.task.task_id, api.registry.tasks
    await tasks.record_retry(task_id, "no answer")
    seen: list[str] = []
    async with asyncio.timeout(20), api.user.stream("GET", f"/api/tasks/{task_id}/events") as response:
        async for event in _sse(response):
            if event["kind"] == "retry":
                seen.append(event["current"])
            if event["current"] == "no answer":
                assert (await api.user.get(f"/api/tasks/{task_id}")).json()["last_error"] == "no answer"
                await eventually(lambda: api.someone_waits(task_id))
                await tasks.record_retry(task_id, "no answer")
                await api.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
            elif event["current"] == "online":
                await eventually(lambda: api.someone_waits(task_id))
                await tasks.record_retry(task_id, "broken off")
            elif event["current"] == "broken off":
                await tasks.advance(task_id, TaskStep.RELEASING)
            elif event["current"] == TaskStep.RELEASING:
                await tasks.finish(task_id, DONE)
    assert seen == ["no answer", "broken off"]


async def test_output_is_followed_as_it_comes_until_the_end(api: RunningApi) -> None:
    """S39: what is kept first, every byte once, whatever characters it cuts."""
    workspace = await api.with_session(await api.workspace())
    task_id = workspace.task.task_id
    await _append(api, workspace, 0, "héllo ")
    read = b""
    async with asyncio.timeout(20), api.user.stream("GET", f"/api/tasks/{task_id}/logs?follow=true") as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        step = 0
        async for chunk in response.aiter_bytes():
            read += chunk
            if step == 0 and read.endswith(b"llo "):
                step = 1
                await _append(api, workspace, 7, "wörld\n")
            elif step == 1 and read.endswith(b"rld\n"):
                step = 2
                await _append(api, workspace, 14, "last\n")
                await api.registry.tasks.finish(task_id, DONE)
    assert read == "héllo wörld\nlast\n".encode()
    assert (await api.user.get(f"/api/tasks/{task_id}/logs?offset=7")).content == "wörld\nlast\n".encode()
    assert (await api.user.get(f"/api/tasks/{task_id}/logs?offset=7000")).content == b""
    assert (await api.user.get(f"/api/tasks/{task_id}/logs?follow=true&offset=14")).content == b"last\n"


async def test_the_boot_log_is_followed_as_it_comes_until_the_end(api: RunningApi) -> None:
    """S39: what is kept of it first, the newest 50 entries, then each as it is reported."""
    workspace = await api.workspace()
    path = f"/api/tasks/{workspace.task.task_id}/boot-log"

    async def report(number: int) -> None:
        stamp = f"2026-01-01T00:{number:02}:00Z"
        body = {
            "step": "setup[0]",
            "status": "failed",
            "message": f"{number}",
            "timestamp": stamp,
            "detail": "x" * 9000,
        }
        answer = await api.anyone.post(f"{workspace.path}/boot-log", json=body, headers=workspace.headers)
        assert answer.status_code == 202

    for number in range(53):
        await report(number)
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(20), api.user.stream("GET", f"{path}?follow=true") as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        async for line in response.aiter_lines():
            seen.append(json.loads(line))
            if len(seen) == 50:
                await report(53)
            elif len(seen) == 51:
                await report(54)
                await api.registry.tasks.finish(workspace.task.task_id, DONE)
    assert [entry["message"] for entry in seen] == [str(number) for number in range(3, 55)]
    assert {len(entry["detail"]) for entry in seen} == {8 * 1024}
    rest = await api.user.get(path, params={"after": seen[-2]["id"]})
    assert [json.loads(line) for line in rest.text.splitlines()] == seen[-1:]
    assert (await api.user.get(path, params={"after": seen[-1]["id"], "follow": True})).text == ""


async def test_following_may_begin_before_there_is_a_session(api: RunningApi) -> None:
    workspace = await api.workspace()
    task_id = workspace.task.task_id

    async def follow() -> bytes:
        return (await api.user.get(f"/api/tasks/{task_id}/logs?follow=true")).content

    following = asyncio.create_task(follow())
    await eventually(lambda: api.someone_waits(task_id))
    await api.with_session(workspace)
    await _append(api, workspace, 0, "x" * 100_000)
    await api.registry.tasks.finish(task_id, DONE)
    async with asyncio.timeout(20):
        assert await following == b"x" * 100_000


async def test_large_output_comes_whole(api: RunningApi) -> None:
    workspace = await api.with_session(await api.workspace())
    text = "".join(f"{n:07d}\n" for n in range(25_000))
    for offset in range(0, 4 * len(text), len(text)):
        await _append(api, workspace, offset, text)
    answer = await api.user.get(f"/api/tasks/{workspace.task.task_id}/logs")
    assert answer.text == text * 4


async def test_a_follower_that_leaves_leaves_nothing_behind(api: RunningApi) -> None:
    workspace = await api.workspace()
    async with api.user.stream("GET", f"/api/tasks/{workspace.task.task_id}/logs?follow=true"):
        pass
    async with api.user.stream("GET", f"/api/tasks/{workspace.task.task_id}/events") as response:
        async for _ in _sse(response):
            break

    async def nobody_watches() -> bool:
        return workspace.task.task_id not in api.registry.changes._watches

    await eventually(nobody_watches, seconds=5)


async def test_streams_end_when_the_server_stops(registry: Registry, temporal: Any, keys: Keyring) -> None:
    await registry.tokens.add("tests", API_TOKEN)
    client = httpx.AsyncClient(headers={"Authorization": f"Bearer {API_TOKEN}"}, trust_env=False)
    async with client, asyncio.timeout(30):
        async with serving(registry, temporal, keys) as api:
            workspace = await api.workspace()
            base = f"{api.url}/api/tasks/{workspace.task.task_id}"
            following = [
                asyncio.create_task(client.get(f"{base}/events", timeout=30)),
                asyncio.create_task(client.get(f"{base}/logs?follow=true", timeout=30)),
            ]

            async def both_watch() -> bool:
                return len(registry.changes._watches.get(workspace.task.task_id, ())) == 2

            await eventually(both_watch)
            began = time.monotonic()
        assert time.monotonic() - began < 3
        answers = await asyncio.gather(*following)
    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize("what", ["events", "logs", "boot-log", "diff"])
async def test_an_unknown_task_is_404(api: RunningApi, what: str) -> None:
    """S36."""
    for task in ("t-unknown", "%00", "T"):
        assert (await api.user.get(f"/api/tasks/{task}/{what}")).status_code == 404
