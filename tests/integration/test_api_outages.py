"""What the API does while Temporal, PostgreSQL or both are away: stopped for real, and started again."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator

import pytest
from psycopg.types.json import Jsonb
from temporalio import activity
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from api import forwarding
from cli.client import ApiClient, Disconnected
from cli.discovery import Service
from cli.errors import Unreachable
from messages.keys import Keyring
from messages.names import SESSION_FINISHED, WORKSPACE_READY, host_task_queue, task_workflow_id
from messages.signals import WorkspaceReady
from messages.statuses import TaskStatus, Verdict
from messages.tasks import TaskOutcome, TaskRequest
from store.callbacks import STORED_CALLBACKS
from store.database import Connection
from store.records import Callback
from store.registry import Registry
from tests.support.api import API_TOKEN, RunningApi, Workspace, eventually, postgres_away, serving, signals, unique
from tests.support.records import rows
from tests.support.temporal import DevServer, dev_server_path

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

HEARTBEAT = {"state": "ready"}


@pytest.fixture
async def own(dev_server: DevServer, registry: Registry, keys: Keyring) -> AsyncIterator[RunningApi]:
    """An API whose Temporal is this test's to stop."""
    await dev_server.start()
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, await dev_server.client(), keys) as running_api:
        yield running_api


@pytest.fixture
async def quick(database_url: str, registry: Registry, temporal: Client, keys: Keyring) -> AsyncIterator[RunningApi]:
    """An API whose registry gives PostgreSQL up after half a second, so that the test is soon over."""
    await registry.tokens.add("tests", API_TOKEN)
    async with (
        Registry.connect(database_url, timeout=0.5) as impatient,
        serving(impatient, temporal, keys) as running_api,
    ):
        yield running_api


async def _ready(api: RunningApi, workspace: Workspace) -> tuple[int, dict[str, object]]:
    answer = await api.anyone.post(f"{api.url}/api/workspaces/{workspace.id}/ready", headers=workspace.headers)
    return answer.status_code, answer.json()


async def _all_delivered(registry: Registry) -> None:
    async def none_left() -> bool:
        return not await registry.callbacks.undelivered()

    await eventually(none_left)


async def test_a_callback_that_temporal_misses_is_stored_and_delivered_on_its_return(
    own: RunningApi, dev_server: DevServer
) -> None:
    """S48 at the API: 202 while Temporal is away, one signal when it is back; repeats are stored once."""
    workspace = await own.with_session(await own.workspace())
    await dev_server.stop()
    for _ in range(3):
        assert await _ready(own, workspace) == (202, {"success": True})
    end = await own.anyone.post(
        f"{workspace.path}/sessions/{workspace.session}/finished",
        json={"status": "completed"},
        headers=workspace.headers,
    )
    assert (end.status_code, end.json()) == (202, {"success": True})
    stored = await own.registry.callbacks.find(workspace.id, 1)
    assert [callback.signal for callback in stored] == [WORKSPACE_READY, SESSION_FINISHED]
    await dev_server.start()
    async with asyncio.timeout(20):
        found = await signals(workspace.workflow, wait_for=2)
    assert [name for name, _ in found] == [WORKSPACE_READY, SESSION_FINISHED]
    await _all_delivered(own.registry)
    assert await _ready(own, workspace) == (200, {"success": True})
    assert len(await signals(workspace.workflow)) == 2


async def test_what_an_earlier_process_stored_is_delivered_by_the_next(
    dev_server: DevServer, registry: Registry, keys: Keyring
) -> None:
    await dev_server.start()
    async with serving(registry, await dev_server.client(), keys) as first:
        workspace = await first.workspace()
        await dev_server.stop()
        assert await _ready(first, workspace) == (202, {"success": True})
    await dev_server.start()
    async with serving(registry, await dev_server.client(), keys), asyncio.timeout(20):
        assert [name for name, _ in await signals(workspace.workflow, wait_for=1)] == [WORKSPACE_READY]
        await _all_delivered(registry)


async def test_what_one_replica_stored_another_delivers(registry: Registry, keys: Keyring, temporal: Client) -> None:
    """S48: the replica that took the callback may be gone for good by the time Temporal is back."""
    away = await Client.connect("127.0.0.1:1", lazy=True, data_converter=pydantic_data_converter)
    async with serving(registry, temporal, keys) as other:
        workspace = await other.workspace()
        await eventually(other.all_is_there)
        async with serving(registry, away, keys) as replica:
            assert await _ready(replica, workspace) == (202, {"success": True})
        async with asyncio.timeout(5):
            assert [name for name, _ in await signals(workspace.workflow, wait_for=1)] == [WORKSPACE_READY]
        await _all_delivered(registry)


async def test_a_stored_callback_that_nobody_was_told_of_is_found(
    registry: Registry, keys: Keyring, temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S48: a notification may be lost, as behind a connection pooler; the safety net looks by itself."""
    monkeypatch.setattr(forwarding, "LONGEST_WAIT_SECONDS", 0.5)
    async with serving(registry, temporal, keys) as api:
        workspace = await api.workspace()
        await api.hears_changes()  # the looks at the start and at the listener's are not those that are meant
        await eventually(lambda: api.someone_waits(STORED_CALLBACKS))
        ready = WorkspaceReady(workspace_id=workspace.id, attempt=1)

        async def keep_silently(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO kept_callbacks (workflow_id, signal, workspace_id, attempt, payload)"
                " VALUES (%s, %s, %s, 1, %s)",
                (workspace.workflow_id, WORKSPACE_READY, workspace.id, Jsonb(ready.model_dump(mode="json"))),
            )

        await registry.callbacks.database.run(keep_silently, atomic=True)
        async with asyncio.timeout(10):
            assert len(await signals(workspace.workflow, wait_for=1)) == 1
        await _all_delivered(registry)


async def test_a_stored_callback_whose_workflow_has_closed_holds_up_nothing(
    own: RunningApi, dev_server: DevServer
) -> None:
    gone, waits = await own.workspace(), await own.workspace()
    await gone.workflow.terminate()
    await dev_server.stop()
    assert (await _ready(own, gone))[0] == 202
    assert (await _ready(own, waits))[0] == 202
    await dev_server.start()
    async with asyncio.timeout(20):
        assert len(await signals(waits.workflow, wait_for=1)) == 1
    await _all_delivered(own.registry)


async def test_unknown_workspaces_and_older_attempts_are_not_stored(own: RunningApi, dev_server: DevServer) -> None:
    """S35, S36: also while Temporal is away."""
    workspace = await own.workspace()
    await own.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
    await dev_server.stop()
    unknown = Workspace(
        workspace.task.model_copy(update={"workspace_id": "w-none"}),
        1,
        own.keys,
        workspace.created_at,
        workspace.workflow,
        own.url,
    )
    assert (await _ready(own, unknown))[0] == 404
    assert await own.registry.callbacks.undelivered() == []


async def test_a_temporal_that_hangs_is_given_up_after_a_few_seconds(
    registry: Registry, keys: Keyring, temporal: Client
) -> None:
    """The agent's request must be answered before the agent gives it up."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as hole:
        address = f"127.0.0.1:{hole.sockets[0].getsockname()[1]}"
        hanging = await Client.connect(address, lazy=True, data_converter=pydantic_data_converter)
        async with serving(registry, temporal, keys) as helper, serving(registry, hanging, keys) as api:
            workspace = await helper.workspace()
            began = time.monotonic()
            assert await _ready(api, workspace) == (202, {"success": True})
            assert time.monotonic() - began < 6


async def test_a_namespace_that_is_not_there_is_not_taken_for_a_closed_workflow(
    registry: Registry, keys: Keyring, temporal: Client
) -> None:
    """A Temporal that is not set up yet says NOT_FOUND too."""
    address = temporal.service_client.config.target_host
    elsewhere = await Client.connect(address, namespace="missing", lazy=True, data_converter=pydantic_data_converter)
    async with serving(registry, temporal, keys) as helper, serving(registry, elsewhere, keys) as api:
        workspace = await helper.workspace()
        assert await _ready(api, workspace) == (202, {"success": True})
        assert len(await rows(registry, "kept_callbacks")) == 1


async def test_while_postgresql_is_away_callbacks_are_signalled_straight_through(
    quick: RunningApi, postgres: str, database_url: str
) -> None:
    workspace = await quick.with_session(await quick.workspace())
    assert (await quick.user.get("/api/tasks")).status_code == 200
    with postgres_away(postgres, database_url):
        began = time.monotonic()
        assert await _ready(quick, workspace) == (200, {"success": True})
        assert time.monotonic() - began < 2
        answer = await quick.anyone.post(
            f"{workspace.path}/sessions/{workspace.session}/finished",
            json={"status": "completed"},
            headers=workspace.headers,
        )
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        assert [name for name, _ in await signals(workspace.workflow)] == [WORKSPACE_READY, SESSION_FINISHED]
        beat = await quick.anyone.post(f"{workspace.path}/heartbeat", json=HEARTBEAT, headers=workspace.headers)
        assert (beat.status_code, beat.headers["retry-after"]) == (503, "2")
        # A token seen shortly before is still known: the user learns what is away instead of being locked out.
        listed = await quick.user.get("/api/tasks")
        assert (listed.status_code, listed.headers["retry-after"]) == (503, "2")
        assert "PostgreSQL" in listed.json()["detail"]
        assert (await quick.user.get("/api/templates")).status_code == 200
        other = await quick.anyone.get("/api/templates", headers={"Authorization": "Bearer unseen"})
        assert other.status_code == 503
        cancelled = await quick.user.post(f"/api/tasks/{workspace.task.task_id}/cancel")
        assert cancelled.status_code == 202
        assert (await quick.anyone.get("/healthz")).status_code == 200
        ready = await quick.anyone.get("/readyz")
        assert (ready.status_code, ready.json()["parts"]) == (503, {"temporal": "ok", "registry": "away"})
        assert ready.json()["problems"] == {
            "registry": "PostgreSQL does not answer; mend it: start it, or correct TASKRUNNER_DATABASE_URL of the API;"
            " taskrunner doctor, on the API's machine, says more"
        }
    await eventually(quick.all_is_there)


async def test_with_both_away_the_callback_is_refused_with_a_time_to_come_back(
    own: RunningApi, dev_server: DevServer, postgres: str, database_url: str
) -> None:
    workspace = await own.workspace()
    await dev_server.stop()
    with postgres_away(postgres, database_url):
        answer = await own.anyone.post(f"{workspace.path}/ready", headers=workspace.headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "send it again" in answer.json()["detail"]
        ready = (await own.anyone.get("/readyz")).json()
        assert ready["parts"] == {"temporal": "away", "registry": "away"}
        assert ready["problems"]["temporal"].startswith("Temporal does not answer; mend it: start it")
        assert ready["problems"].keys() == ready["parts"].keys()
        # The addresses of both, and what PostgreSQL says, are nothing for everybody who can reach the API.
        assert not [text for text in ready["problems"].values() if "127.0.0.1" in text or "taskrunner_" in text]


async def test_what_temporal_lacks_is_told_with_the_command_that_mends_it(
    registry: Registry, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting does not help: it is no outage. Mended by that very command, the same request starts the task."""
    await registry.tokens.add("tests", API_TOKEN)
    body = {"id": unique("t"), "prompt": "true", "backend": "local"}
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=dev_server_path(),
        dev_server_log_level="error",
        data_converter=pydantic_data_converter,
    ) as bare:
        target = bare.client.service_client.config.target_host
        nowhere = await Client.connect(target, namespace="nowhere", data_converter=pydantic_data_converter, lazy=True)
        async with serving(registry, nowhere, keys) as api:
            told = (
                "Temporal has no namespace 'nowhere'; mend it: temporal operator namespace create --namespace nowhere"
            )
            for answer in (
                await api.user.post("/api/tasks", json=body),
                await api.user.post(f"/api/tasks/{body['id']}/cancel"),
            ):
                assert (answer.status_code, "retry-after" in answer.headers) == (503, False)
                assert answer.json()["type"] == "urn:taskrunner:problem:not-set-up"
                assert told in answer.json()["detail"]
            ready = await api.anyone.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["parts"] == {"temporal": "not set up", "registry": "ok"}
            assert ready.json()["problems"] == {"temporal": told}
            async with ApiClient(Service(api.url, API_TOKEN)) as client:
                with pytest.raises(Unreachable, match="namespace create") as refused:
                    await client.submit(TaskRequest.model_validate(body))
            assert not isinstance(refused.value, Disconnected)  # which would be tried for two minutes
            assert "try again later" not in str(refused.value)
        async with serving(registry, bare.client, keys) as api:
            answer = await api.user.post("/api/tasks", json=body)
            assert answer.status_code == 503
            assert "search attributes are missing in Temporal's namespace 'default'" in answer.json()["detail"]
            problem = (await api.anyone.get("/readyz")).json()["problems"]["temporal"]
            assert "TaskStatus, TaskStep, WorkspaceBackend, WorkspaceId" in problem
            monkeypatch.setenv("TEMPORAL_ADDRESS", target)
            monkeypatch.setenv("TASKRUNNER_TEMPORAL_BIN", dev_server_path())
            mend = problem.rpartition("mend it: ")[2]
            await asyncio.to_thread(subprocess.run, mend, shell=True, check=True, capture_output=True)
            assert (await api.anyone.get("/readyz")).status_code == 200
            assert (await api.user.post("/api/tasks", json=body)).status_code == 200


async def test_a_task_that_temporal_misses_stays_queued_and_a_repeat_starts_it(
    own: RunningApi, dev_server: DevServer
) -> None:
    """S20: 503 with Retry-After, the row stays; the repeat is the same task."""
    body = {"id": unique("t"), "prompt": "true", "backend": "local"}
    await dev_server.stop()
    answer = await own.user.post("/api/tasks", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert body["id"] in answer.json()["detail"]
    view = await own.registry.tasks.get(body["id"])
    assert view is not None
    assert view.status is TaskStatus.QUEUED
    assert (await own.user.post(f"/api/tasks/{body['id']}/cancel")).status_code == 503
    await dev_server.start()
    await eventually(own.all_is_there)
    answer = await own.user.post("/api/tasks", json=body)
    assert (answer.status_code, answer.json()["id"]) == (200, body["id"])
    description = await own.temporal.get_workflow_handle(task_workflow_id(body["id"])).describe()
    assert description.workflow_type == "TaskRunner"


async def test_a_task_that_was_never_started_can_be_cancelled_and_stays_so(
    own: RunningApi, dev_server: DevServer
) -> None:
    """S26: nothing resurrects it."""
    body = {"id": unique("t"), "prompt": "true", "backend": "local"}
    await dev_server.stop()
    assert (await own.user.post("/api/tasks", json=body)).status_code == 503
    await dev_server.start()
    await eventually(own.all_is_there)
    answer = await own.user.post(f"/api/tasks/{body['id']}/cancel")
    assert answer.status_code == 202
    again = await own.user.post("/api/tasks", json=body)
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert again.json()["error"]
    assert (await own.user.post(f"/api/tasks/{body['id']}/cancel")).status_code == 409
    assert [w.id async for w in own.temporal.list_workflows(f"WorkflowId = 'task-{body['id']}'")] == []


@activity.defn
async def nothing() -> None:
    """Gives a host's worker something to poll for."""


async def test_a_repeat_needs_no_worker_on_its_host(own: RunningApi, dev_server: DevServer) -> None:
    """S20: what was taken stays taken, by id and by key, also while the worker of its host is away."""
    name = unique("host")
    asked = {"prompt": "true", "repository": {"path": "/srv/repo", "host": name}}
    with_key = {"Idempotency-Key": unique("key")}
    with_id = asked | {"id": unique("t")}
    connected = await Client.connect(dev_server.address)
    async with Worker(connected, task_queue=host_task_queue(name), activities=[nothing]):
        first = await own.user.post("/api/tasks", json=asked, headers=with_key)
        second = await own.user.post("/api/tasks", json=with_id)
        assert (first.status_code, second.status_code) == (201, 201)
    await dev_server.stop()  # it would remember the worker for minutes
    await dev_server.start()
    await eventually(own.all_is_there)
    assert (await own.user.post("/api/tasks", json=asked | {"id": unique("t")})).status_code == 422
    repeated = await own.user.post("/api/tasks", json=asked, headers=with_key)
    assert (repeated.status_code, repeated.json().get("id")) == (200, first.json()["id"])
    assert (await own.user.post("/api/tasks", json=with_id)).status_code == 200
    other = await own.user.post("/api/tasks", json=with_id | {"prompt": "other"})
    assert (other.status_code, other.json()["task_id"]) == (409, with_id["id"])


async def test_a_stream_waits_through_an_outage_of_postgresql(
    quick: RunningApi, postgres: str, database_url: str
) -> None:
    workspace = await quick.with_session(await quick.workspace())
    task_id = workspace.task.task_id

    async def append(offset: int, text: str) -> None:
        await quick.registry.sessions.append_output(workspace.id, 1, workspace.session, offset, text)

    async def reads() -> bool:
        return not await quick.someone_waits(task_id)

    await append(0, "before\n")
    async with asyncio.timeout(60), quick.user.stream("GET", f"/api/tasks/{task_id}/logs?follow=true") as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"before\n"
        await eventually(lambda: quick.someone_waits(task_id))
        with postgres_away(postgres, database_url):
            quick.registry.changes._wake_all()  # as a notification does that came just before the outage
            await eventually(reads)
        await eventually(quick.all_is_there)
        await append(7, "after\n")
        await quick.registry.tasks.finish(task_id, TaskOutcome(status=TaskStatus.COMPLETED))
        assert b"".join([chunk async for chunk in chunks]) == b"after\n"


async def test_one_stored_callback_that_temporal_does_not_take_holds_up_no_other(
    own: RunningApi, dev_server: DevServer
) -> None:
    stuck, waits = await own.workspace(), await own.workspace()
    await dev_server.stop()
    await own.registry.callbacks.store(
        Callback(stuck.workflow_id, WORKSPACE_READY, stuck.id, 1, None, {"larger than gRPC takes": "x" * 5_000_000})
    )
    assert (await _ready(own, waits))[0] == 202
    await dev_server.start()
    async with asyncio.timeout(20):
        assert len(await signals(waits.workflow, wait_for=1)) == 1
