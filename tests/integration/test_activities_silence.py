"""A workspace that goes silent under its session is noticed, and never where only its heartbeats are not heard."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest
from temporalio import activity
from temporalio.worker import Worker

from activities.backends.contract import Compute, WorkspaceSpec
from activities.backends.local import LocalBackend
from activities.silence import SilenceWatcher, Surroundings
from api.workflows_client import require_worker
from messages.names import host_task_queue, session_id, task_workflow_id
from messages.signals import SessionFinished, WorkspaceLost
from messages.statuses import BackendKind, SessionStatus, Verdict
from messages.tokens import mint_callback_token
from tests.support.api import RunningApi, eventually, postgres_away, unique
from tests.support.hosts import make_spec, make_task
from tests.support.port import Port

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

pytestmark = pytest.mark.timeout(90)


COUNTED_ANEW_SECONDS = 4.5
"""At least: 3 heartbeats since the last look that found it away, at most 1 s before it came back, and 3 s of asking."""


class Announced:
    """Takes what is announced; ``next`` waits for one."""

    def __init__(self) -> None:
        self.all: asyncio.Queue[WorkspaceLost] = asyncio.Queue()

    async def __call__(self, compute: Compute, lost: WorkspaceLost) -> None:
        assert (compute.workspace_id, compute.attempt) == (lost.workspace_id, lost.attempt)
        self.all.put_nowait(lost)

    async def next(self) -> WorkspaceLost:
        async with asyncio.timeout(30):
            return await self.all.get()


class Scene:
    """A real agent that beats once a second to a real API, and a session that the registry knows."""

    def __init__(
        self, api: RunningApi, backend: LocalBackend, spec: WorkspaceSpec, http: httpx.AsyncClient, host: str
    ) -> None:
        self.api, self.backend, self.spec, self.http = api, backend, spec, http
        self.host = host
        self.announced = Announced()
        self.session = session_id(spec.compute.workspace_id, 1, 1)

    async def freeze(self, number: signal.Signals = signal.SIGSTOP) -> None:
        process = await self.backend.process_to_watch(self.spec.compute)
        assert process is not None
        os.kill(process.pid, number)

    @asynccontextmanager
    async def watched(self, host: str = "", api_url: str = "") -> AsyncIterator[SilenceWatcher]:
        around = Surroundings(
            client=self.api.temporal,
            registry=self.api.registry,
            keys=self.api.keys,
            http=self.http,
            api_url=api_url or self.api.url,
        )
        async with SilenceWatcher(
            around, host or self.host, {BackendKind.LOCAL: self.backend}, self.announced
        ) as watcher:
            yield watcher

    async def silent_seconds(self) -> float:
        beats = await self.api.registry.workspaces.beats()
        return next(beat.silent_seconds for beat in beats if beat.workspace_id == self.spec.compute.workspace_id)

    async def silent_for(self, seconds: float) -> None:
        async def silent() -> bool:
            return await self.silent_seconds() >= seconds

        await eventually(silent)


@pytest.fixture
async def scene(api: RunningApi, tmp_path: Path) -> AsyncIterator[Scene]:
    backend = LocalBackend(tmp_path / "home", environ=os.environ, stop_grace_seconds=1)
    task = make_task(BackendKind.LOCAL, heartbeat_interval="1s")
    workspace, workflow_id = task.workspace_id, task_workflow_id(task.task_id)
    registry, host = api.registry, unique("host")
    await registry.tasks.create(task, digest=task.task_id, idempotency_key=None)
    await registry.tasks.begin(task.task_id)
    created_at = await registry.workspaces.begin_attempt(task, 1, host_id=host, workflow_id=workflow_id)
    token = mint_callback_token(
        api.keys, workspace_id=workspace, attempt=1, workflow_id=workflow_id, issued_at=created_at
    )
    spec = replace(
        make_spec(task, None, api_url=api.url),
        callback_token=token,
        agent_token_sha256=api.keys.agent_token_sha256(workspace, 1),
    )
    handle = await backend.provision(spec)
    try:
        await registry.workspaces.record_provisioned(handle)
        await registry.workspaces.record_verdict(workspace, 1, Verdict.READY)
        async with httpx.AsyncClient(trust_env=False) as http:
            scene = Scene(api, backend, spec, http, host)
            await registry.sessions.record_starting(
                scene.session, task_id=task.task_id, workspace_id=workspace, attempt=1, turn=1
            )

            async def beats() -> bool:
                view = await registry.workspaces.get(workspace)
                return bool(view and view.last_heartbeat_at)

            await eventually(beats)
            yield scene
    finally:
        await backend.destroy(spec.compute)


async def test_a_frozen_agent_is_lost_after_three_heartbeats_and_no_sooner(scene: Scene) -> None:
    """S28: a process that is stopped has not ended, so there is nothing else to notice."""
    async with scene.watched():
        await scene.freeze()
        lost = await scene.announced.next()
        assert await scene.silent_seconds() >= 3
        await scene.silent_for(await scene.silent_seconds() + 3)  # two more looks
    assert lost.workspace_id == scene.spec.compute.workspace_id
    assert "went silent: its last heartbeat came " in lost.reason
    assert "its agent does not answer: http://127.0.0.1:" in lost.reason
    assert "listens on" in lost.log_tail
    assert scene.announced.all.empty(), "once"


async def test_an_agent_that_never_got_a_heartbeat_through_is_lost_as_well(scene: Scene, database_url: str) -> None:
    """S28: it cannot reach the API, its session was made from our side, and then its host loses power."""
    await scene.freeze()
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("UPDATE workspaces SET last_heartbeat_at = NULL")
    async with scene.watched():
        lost = await scene.announced.next()
        assert await scene.silent_seconds() >= 3
    assert "no heartbeat has come in the " in lost.reason
    assert "since its session began, and its agent does not answer: " in lost.reason


async def test_an_agent_that_answers_is_not_lost_however_long_it_is_not_heard(scene: Scene, database_url: str) -> None:
    """S47: only its heartbeats do not get through."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER deaf BEFORE UPDATE OF last_heartbeat_at ON workspaces FOR EACH ROW EXECUTE FUNCTION deaf()"
        )
    async with scene.watched():
        await scene.silent_for(8)
    assert scene.announced.all.empty()


async def test_while_the_api_is_away_nothing_is_lost_and_silence_counts_from_its_return(scene: Scene) -> None:
    """S47"""
    away = Port()
    away.answers = [(503, {})]
    try:
        async with scene.watched(api_url=away.url):
            await scene.freeze()
            await scene.silent_for(8)
            assert scene.announced.all.empty()
            asked, away.answers = len(away.requests), [(200, {})]
            before = await scene.silent_seconds()
            await scene.announced.next()
            assert asked
            assert await scene.silent_seconds() - before >= COUNTED_ANEW_SECONDS
    finally:
        away.close()


async def test_after_postgres_was_away_silence_counts_from_its_return(
    scene: Scene, postgres: str, database_url: str
) -> None:
    """S47: the API could not take heartbeats meanwhile."""
    loop = asyncio.get_running_loop()
    async with scene.watched() as watcher:
        await scene.freeze()
        with postgres_away(postgres, database_url):
            watcher.look_soon()
            await asyncio.sleep(4)  # longer than three heartbeats; what is away announces nothing
        back = loop.time()
        await scene.announced.next()
    assert loop.time() - back >= COUNTED_ANEW_SECONDS


async def test_a_workspace_without_a_session_is_nobodys_business(scene: Scene) -> None:
    """Before its session the provision timeout counts, afterwards its release is under way."""
    await scene.api.registry.sessions.finish(
        SessionFinished(
            workspace_id=scene.spec.compute.workspace_id,
            attempt=1,
            session_id=scene.session,
            status=SessionStatus.COMPLETED,
        )
    )
    async with scene.watched():
        await scene.freeze()
        await scene.silent_for(7)
    assert scene.announced.all.empty()


@activity.defn
async def nothing() -> None:
    """What a worker needs to be one."""


@pytest.mark.parametrize("has_worker", [True, False])
async def test_a_silent_host_is_lost_only_where_it_has_no_worker_either(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, has_worker: bool
) -> None:
    """S28: a host without power cannot be asked by anybody; one with a worker is that worker's business."""
    monkeypatch.setattr("activities.silence.UNASKABLE_SECONDS", 4.0)
    worker = Worker(scene.api.temporal, task_queue=host_task_queue(scene.host), activities=[nothing])
    async with contextlib.AsyncExitStack() as there:
        if has_worker:
            await there.enter_async_context(worker)
            await require_worker(scene.api.temporal, scene.host)  # it has asked for work
        async with scene.watched("another-host"):
            await scene.freeze()
            if has_worker:
                await scene.silent_for(8)
                assert scene.announced.all.empty()
            else:
                lost = await scene.announced.next()
                assert await scene.silent_seconds() >= 4
                assert f"no worker runs on its host '{scene.host}'" in lost.reason
