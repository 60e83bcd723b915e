"""Watches wake when something happens to their task, and outlive the connection that wakes them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
import pytest

from messages.statuses import TaskStep
from store.changes import Watch
from store.registry import Registry
from tests.support.cuttable_proxy import cuttable_proxy
from tests.support.records import a_task, queued, running, starting

SECONDS = 10  # how long to wait for what must happen
QUIET = 0.3  # how long to wait for what must not


@asynccontextmanager
async def _listening(registry: Registry, task_id: str) -> AsyncGenerator[Watch]:
    """A watch on a registry that listens by now: the first wake says so."""
    async with registry.changes.watch(task_id) as changed:
        await asyncio.wait_for(changed.wait(), SECONDS)
        yield changed


def _listeners(database_url: str) -> list[int]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        return [pid for (pid,) in connection.execute(query).fetchall()]


async def test_a_watch_wakes_for_events_and_output_of_its_task(registry: Registry) -> None:
    """S39."""
    task, session = await starting(registry)
    async with _listening(registry, task.task_id) as changed:
        await registry.tasks.advance(task.task_id, TaskStep.SESSION_RUNNING)
        await asyncio.wait_for(changed.wait(), SECONDS)
        await registry.sessions.append_output(task.workspace_id, 1, session, 0, "hello")
        await asyncio.wait_for(changed.wait(), SECONDS)


async def test_a_watch_sleeps_while_nothing_happens_to_its_task(registry: Registry) -> None:
    task, session = await starting(registry)
    async with _listening(registry, task.task_id) as changed:
        await running(registry, a_task("t-other"))
        await registry.tasks.advance(task.task_id, TaskStep.PREFLIGHT)  # not legal: no event
        await registry.sessions.append_output(task.workspace_id, 1, session, 0, "")  # nothing new
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(changed.wait(), QUIET)


async def test_what_happens_between_two_waits_is_not_missed(registry: Registry) -> None:
    """S39: and several changes wake once."""
    task = await queued(registry)
    async with _listening(registry, task.task_id) as changed, registry.changes.watch("t-other") as other:
        await registry.tasks.begin(task.task_id)
        await queued(registry, a_task("t-other"))
        await asyncio.wait_for(other.wait(), SECONDS)  # so the earlier notifications are in as well
        await asyncio.wait_for(changed.wait(), SECONDS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(changed.wait(), QUIET)


async def test_all_watches_share_one_connection(registry: Registry, database_url: str) -> None:
    task = await queued(registry)
    assert _listeners(database_url) == []
    async with _listening(registry, task.task_id) as first, registry.changes.watch(task.task_id) as second:
        async with registry.changes.watch("t-2"), registry.changes.watch("t-3"):
            assert len(_listeners(database_url)) == 1
        await registry.tasks.begin(task.task_id)
        await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), SECONDS)


async def test_a_watch_survives_the_death_of_the_listening_connection(registry: Registry, database_url: str) -> None:
    """A new one is made, and everybody is woken, because something may have been missed."""
    task = await queued(registry)
    async with _listening(registry, task.task_id) as changed:
        (pid,) = _listeners(database_url)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await asyncio.wait_for(changed.wait(), SECONDS)
        (new,) = _listeners(database_url)
        assert new != pid
        await registry.tasks.begin(task.task_id)
        await asyncio.wait_for(changed.wait(), SECONDS)


async def test_a_watch_begins_and_goes_on_while_postgresql_is_away(database_url: str) -> None:
    async with cuttable_proxy(database_url) as proxy, Registry.connect(proxy.url) as registry:
        await proxy.cut()
        async with registry.changes.watch("t-1") as changed:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(changed.wait(), QUIET)
            await proxy.open()
            await asyncio.wait_for(changed.wait(), SECONDS)
            await proxy.cut()
            await proxy.open()
            await asyncio.wait_for(changed.wait(), SECONDS)
            await queued(registry)
            await asyncio.wait_for(changed.wait(), SECONDS)
