"""The registry while PostgreSQL is away, frozen or just back."""

import asyncio
from time import monotonic

import psycopg
import pytest
from psycopg.rows import tuple_row

from messages.statuses import TaskStatus
from store.database import Connection
from store.errors import RegistryUnavailable
from store.registry import Registry
from tests.support.cuttable_proxy import cuttable_proxy
from tests.support.records import a_task, queued


async def test_a_registry_opens_and_answers_in_time_while_nothing_is_there(database_url: str) -> None:
    """S47: and the error says why."""
    async with cuttable_proxy(database_url) as proxy:
        await proxy.cut()
        started = monotonic()
        async with Registry.connect(proxy.url, timeout=1) as registry:
            assert monotonic() - started < 0.5
            for _ in range(2):
                started = monotonic()
                with pytest.raises(RegistryUnavailable, match=r"within 1 s .*[Cc]onnection refused"):
                    await registry.tasks.get("t-1")
                assert monotonic() - started < 1.5
            started = monotonic()
            outcomes = await asyncio.gather(
                *(registry.workspaces.attempt_state("w") for _ in range(30)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {RegistryUnavailable}
            assert monotonic() - started < 2


async def test_a_call_that_waits_is_served_when_postgresql_is_back(database_url: str) -> None:
    """S47: no back-off of an earlier call stands in its way."""
    async with cuttable_proxy(database_url) as proxy:
        await proxy.cut()
        async with (
            Registry.connect(proxy.url, timeout=1) as impatient,
            Registry.connect(proxy.url, timeout=20) as registry,
        ):
            calls = [asyncio.create_task(registry.ping()) for _ in range(20)]
            with pytest.raises(RegistryUnavailable):
                await impatient.ping()
            # A back-off that doubles would have tried after 1 and 3 seconds, and next after 7.
            assert not (await asyncio.wait(calls, timeout=2.5))[0]
            await proxy.open()
            await asyncio.wait_for(asyncio.gather(*calls), 2.5)
            await asyncio.wait_for(_until_it_answers(impatient), 2.5)


async def _until_it_answers(registry: Registry) -> None:
    while True:
        try:
            return await registry.ping()
        except RegistryUnavailable:
            pass


async def test_connections_that_died_unnoticed_cost_no_call(registry: Registry, database_url: str) -> None:
    """S47: PostgreSQL was restarted; whoever calls first does not pay for it."""
    await asyncio.gather(*(queued(registry, a_task(f"t-{number}")) for number in range(20)))
    for _ in range(3):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await asyncio.gather(
            *(registry.tasks.begin(f"t-{number}") for number in range(20)),
            *(registry.workspaces.attempt_state("w") for _ in range(20)),
        )
    page = await registry.tasks.list(status=TaskStatus.RUNNING)
    assert len(page.tasks) == 20


async def test_a_server_that_does_not_answer_holds_nobody_longer_than_the_timeout(database_url: str) -> None:
    """S47: the connection stands, but nothing comes."""
    async with cuttable_proxy(database_url) as proxy, Registry.connect(proxy.url, timeout=1) as registry:
        task = await queued(registry)
        proxy.freeze()
        started = monotonic()
        outcomes = await asyncio.gather(
            registry.tasks.get(task.task_id),
            registry.tasks.begin(task.task_id),
            registry.tokens.is_valid("x"),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {RegistryUnavailable}
        assert monotonic() - started < 1.5
        started = monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(registry.workspaces.attempt_state("w"), 0.25)
        assert monotonic() - started < 0.5
        proxy.thaw()
        await _until_it_answers(registry)
        assert await registry.tasks.get(task.task_id)


async def _states(connection: Connection) -> list[tuple[object, ...]]:
    query = """
        SELECT status::text, step IS NOT NULL, started_at IS NOT NULL,
               (SELECT count(*) FROM events WHERE task_id = tasks.id)
        FROM tasks
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        return await (await cursor.execute(query)).fetchall()


async def test_a_call_that_is_given_up_changes_all_or_nothing(registry: Registry) -> None:
    """A caller that is cancelled in the middle leaves no half transition and no broken pool."""
    for number in range(30):
        await queued(registry, a_task(f"t-{number}"))
        call = asyncio.create_task(registry.tasks.begin(f"t-{number}"))
        await asyncio.wait({call}, timeout=number / 10_000)
        call.cancel()
        await asyncio.wait({call})
    await registry.ping()
    # The commit of a call that was given up may still be under way: one statement sees it whole or not at all.
    states = await registry.tasks.database.run(_states, atomic=False)
    assert len(states) == 30
    assert set(states) <= {("queued", False, False, 1), ("running", True, True, 3)}
