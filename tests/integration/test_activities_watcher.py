"""The end of a workspace is noticed without polling, announced once, and never announced when it was our doing."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from temporalio.client import Client

from activities import processes
from activities.backends.contract import Compute, WorkspaceSpec
from activities.backends.worktree import WorktreeBackend
from activities.watcher import ProcessWatcher, signal_owner
from messages.names import TASK_RUNNER, WORKSPACE_LOST, task_workflow_id
from messages.signals import WorkspaceLost
from messages.statuses import BackendKind
from messages.tasks import TaskInput
from store.registry import Registry
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import git, make_repository
from tests.support.hosts import HOST, make_spec, make_task
from tests.support.temporal import DevServer

KIND = BackendKind.WORKTREE


class Announced:
    """Takes what is announced; ``next`` waits for one."""

    def __init__(self) -> None:
        self.all: list[WorkspaceLost] = []
        self._queue: asyncio.Queue[WorkspaceLost] = asyncio.Queue()

    async def __call__(self, compute: Compute, lost: WorkspaceLost) -> None:
        assert (compute.workspace_id, compute.attempt) == (lost.workspace_id, lost.attempt)
        self.all.append(lost)
        self._queue.put_nowait(lost)

    async def next(self) -> WorkspaceLost:
        async with asyncio.timeout(10):
            return await self._queue.get()


@pytest.fixture
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
async def backend(tmp_path: Path, api: CallbackApi) -> AsyncIterator[WorktreeBackend]:
    backend = WorktreeBackend(tmp_path / "home", environ=os.environ, stop_grace_seconds=5)
    yield backend
    for compute in await backend.list_owned():
        await backend.destroy(compute)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def spec_of(repository: Path, api: CallbackApi) -> WorkspaceSpec:
    return make_spec(make_task(KIND, repository), git(repository, "rev-parse", "HEAD"), api_url=api.url)


@pytest.fixture
def spec(repository: Path, api: CallbackApi) -> WorkspaceSpec:
    return spec_of(repository, api)


async def kill(backend: WorktreeBackend, compute: Compute) -> None:
    process = await backend.process_to_watch(compute)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert await processes.wait_for_exit(process, 10)


async def test_an_agent_that_dies_is_announced_at_once_with_its_log(
    backend: WorktreeBackend, spec: WorkspaceSpec, tmp_path: Path
) -> None:
    """S14, S28"""
    announced = Announced()
    async with ProcessWatcher({KIND: backend}, announced) as watcher:
        await backend.provision(spec)
        await watcher.watch(KIND, spec.compute)
        await watcher.watch(KIND, spec.compute)
        with (tmp_path / "home/workspaces" / spec.compute.name / "agent.log").open("a") as log:
            log.write("the last line\n")
        await kill(backend, spec.compute)
        lost = await announced.next()
    assert "signal 9" in lost.reason
    assert lost.log_tail.endswith("the last line\n")
    assert len(announced.all) == 1


async def test_watching_costs_no_thread_and_no_timer(backend: WorktreeBackend, spec: WorkspaceSpec) -> None:
    async with ProcessWatcher({KIND: backend}, Announced()) as watcher:
        await backend.provision(spec)
        threads, tasks = threading.active_count(), asyncio.all_tasks()
        await watcher.watch(KIND, spec.compute)
        assert threading.active_count() <= threads + 1  # a thread of the pool that read a file
        assert asyncio.all_tasks() == tasks


async def test_what_died_while_no_worker_was_there_is_announced_at_the_start(
    backend: WorktreeBackend, repository: Path, api: CallbackApi
) -> None:
    """S18, S28"""
    dead, alive = spec_of(repository, api), spec_of(repository, api)
    for spec in (dead, alive):
        await backend.provision(spec)
    await kill(backend, dead.compute)
    announced = Announced()
    async with ProcessWatcher({KIND: backend}, announced):
        assert (await announced.next()).workspace_id == dead.compute.workspace_id
        await kill(backend, alive.compute)
        assert (await announced.next()).workspace_id == alive.compute.workspace_id


@pytest.mark.parametrize("how", ["destroy", "save"])
async def test_an_end_that_is_our_own_doing_is_not_announced(
    backend: WorktreeBackend, repository: Path, api: CallbackApi, how: str
) -> None:
    ended, other = spec_of(repository, api), spec_of(repository, api)
    announced = Announced()
    async with ProcessWatcher({KIND: backend}, announced) as watcher:
        for spec in (ended, other):
            await backend.provision(spec)
            await watcher.watch(KIND, spec.compute)
        if how == "destroy":
            await backend.destroy(ended.compute)
        else:
            await backend.save_result(ended.compute, ended.base_commit)
        await kill(backend, other.compute)
        await announced.next()  # the watcher is awake, and had only this to say
    assert [lost.workspace_id for lost in announced.all] == [other.compute.workspace_id]
    late = Announced()
    async with ProcessWatcher({KIND: backend}, late):
        assert (await late.next()).workspace_id == other.compute.workspace_id
    assert len(late.all) == 1


async def test_an_agent_that_was_started_again_is_watched_anew(backend: WorktreeBackend, spec: WorkspaceSpec) -> None:
    announced = Announced()
    async with ProcessWatcher({KIND: backend}, announced) as watcher:
        await backend.provision(spec)
        await watcher.watch(KIND, spec.compute)
        await kill(backend, spec.compute)
        await announced.next()
        await backend.provision(spec)
        await watcher.watch(KIND, spec.compute)
        await kill(backend, spec.compute)
        await announced.next()
    assert len(announced.all) == 2


async def test_a_failing_announcement_stops_no_other(
    backend: WorktreeBackend, repository: Path, api: CallbackApi, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = spec_of(repository, api), spec_of(repository, api)
    announced = Announced()

    async def announce(compute: Compute, lost: WorkspaceLost) -> None:
        if compute == first.compute:
            raise RuntimeError("cannot")
        await announced(compute, lost)

    async with ProcessWatcher({KIND: backend}, announce) as watcher:
        for spec in (first, second):
            await backend.provision(spec)
            await watcher.watch(KIND, spec.compute)
            await kill(backend, spec.compute)
        assert (await announced.next()).workspace_id == second.compute.workspace_id
    assert first.compute.name in caplog.text


async def test_closing_the_watcher_leaves_the_workspaces_alone(backend: WorktreeBackend, spec: WorkspaceSpec) -> None:
    async with ProcessWatcher({KIND: backend}, Announced()) as watcher:
        await backend.provision(spec)
        await watcher.watch(KIND, spec.compute)
    assert (await backend.inspect(spec.compute)).alive


def lost_of(task: TaskInput) -> tuple[Compute, WorkspaceLost]:
    compute = Compute(workspace_id=task.workspace_id, attempt=1, task_id=task.task_id)
    return compute, WorkspaceLost(workspace_id=task.workspace_id, attempt=1, reason="gone")


async def signals_of(client: Client, workflow_id: str) -> list[str]:
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    found = [event.workflow_execution_signaled_event_attributes for event in history.events]
    return [attributes.signal_name for attributes in found if attributes.signal_name]


async def test_the_owner_that_the_registry_names_is_signalled(temporal: Client, registry: Registry) -> None:
    task = make_task(BackendKind.LOCAL)
    owner = f"owner-{task.task_id}"
    await registry.tasks.create(task, digest="d", idempotency_key=None)
    await registry.tasks.begin(task.task_id)
    await registry.workspaces.begin_attempt(task, 1, host_id=HOST, workflow_id=owner)
    for workflow_id in (owner, task_workflow_id(task.task_id)):
        await temporal.start_workflow(TASK_RUNNER, id=workflow_id, task_queue="nobody-listens")
    await signal_owner(temporal, registry)(*lost_of(task))
    assert await signals_of(temporal, owner) == [WORKSPACE_LOST]
    assert await signals_of(temporal, task_workflow_id(task.task_id)) == []


async def test_an_owner_that_has_closed_is_no_error(
    temporal: Client, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(BackendKind.LOCAL)
    await signal_owner(temporal, registry)(*lost_of(task))
    assert "nobody owns it" in caplog.text


class _Warned(logging.Handler):
    """Sets ``event`` at the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


async def test_while_temporal_and_postgresql_are_away_the_announcement_waits(tmp_path: Path) -> None:
    """S47: the registry is not needed to find the owner."""
    task = make_task(BackendKind.LOCAL)
    owner = task_workflow_id(task.task_id)
    server = DevServer(tmp_path)
    await server.start()
    await (await server.client()).start_workflow(TASK_RUNNER, id=owner, task_queue="nobody-listens")
    await server.stop()
    warned = _Warned()
    logging.getLogger("activities.watcher").addHandler(warned)
    async with Registry.connect("postgresql://127.0.0.1:9/none", timeout=0.2) as away, asyncio.timeout(60):
        client = await server.client()
        announcing = asyncio.create_task(signal_owner(client, away)(*lost_of(task)))
        try:
            await warned.event.wait()
            assert not announcing.done()
            await server.start()
            await announcing
            assert await signals_of(client, owner) == [WORKSPACE_LOST]
        finally:
            logging.getLogger("activities.watcher").removeHandler(warned)
            announcing.cancel()
            await server.stop()
