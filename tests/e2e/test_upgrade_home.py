"""The embedded stack on a home of an earlier release, and of a later one."""

from pathlib import Path

import psycopg
import pytest

from tests.support.cli import Cli, is_one_line
from tests.support.git_repositories import git, make_repository
from tests.support.releases import RELEASES, restore
from workers.postgres import Postgres, start_postgres

pytestmark = pytest.mark.timeout(240)


async def start_database_of(home: Path) -> Postgres:
    """Start the PostgreSQL of a home, alone."""
    (home / "logs").mkdir(parents=True, exist_ok=True)
    return await start_postgres(home)


@pytest.fixture(params=RELEASES, ids=lambda release: release.name)
async def old(cli: Cli, request: pytest.FixtureRequest) -> Cli:
    """The command, on a home whose data an earlier release wrote."""
    server = await start_database_of(cli.home)
    restore(request.param, server.url)
    await server.child.stop()
    return cli


async def test_the_stack_upgrades_the_data_of_an_earlier_release_when_it_starts(old: Cli) -> None:
    assert old.json("show", "changed")["status"] == "completed"  # and already the first command that reads it
    with old.dev():
        statuses = {task["id"]: task["status"] for task in old.json("list")["tasks"]}
        assert statuses.pop("queued") == "queued"
        assert statuses == {
            "changed": "completed",
            "bundled": "completed",
            "unchanged": "completed",
            "failed": "failed",
            "unready": "failed",
            "cancelled": "cancelled",
        }
        for task in (*statuses, "queued"):
            shown = old.run("show", task)
            assert shown.code == 0, shown
        assert "running → completed" in old.run("events", "changed").out
        assert old.run("logs", "changed").out == "working\n"
        assert old.run("logs", "unchanged").out == "no newline é"
        assert "no compiler here" in old.run("show", "unready").out
        assert "+one" in old.run("diff", "changed").out
        bundle = old.cwd / "bundle"
        assert old.run("diff", "bundled", "--bundle", str(bundle)).code == 0
        assert "taskrunner/bundled" in git(make_repository(old.cwd / "r"), "bundle", "list-heads", str(bundle))

        cancelled = old.run("cancel", "queued")
        assert cancelled.code == 0, cancelled
        new = old.run("run", "--id", "new", "--backend", "local", "--env", "A_KEY", 'echo "$A_KEY"', env={"A_KEY": "v"})
        assert (new.code, new.out) == (0, "v\n"), new
    with old.dev():  # and it stays so
        assert old.json("show", "new")["status"] == "completed"
        assert old.json("show", "changed")["result"]["branch"] == "taskrunner/changed"


@pytest.fixture
async def newer(cli: Cli) -> Cli:
    """The command, on a home whose data a later release wrote."""
    with cli.dev():
        pass
    server = await start_database_of(cli.home)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations (name) VALUES ('9999_from_the_future')")
    await server.child.stop()
    return cli


async def test_a_program_older_than_the_data_refuses_it_with_one_line(newer: Cli) -> None:
    for command in (["dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0"], ["run", "true"], ["list"]):
        refused = newer.run(*command)
        assert refused.code == 2, refused
        last = refused.err.strip().splitlines()[-1]
        assert "newer release (it has 9999_from_the_future" in last
        assert "Traceback" not in refused.err
        assert newer.wait_until_gone() == {}


async def test_worker_and_api_refuse_data_of_another_release(newer: Cli) -> None:
    server = await start_database_of(newer.home)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            for newest, words in (("9999_from_the_future", "newer release"), (None, "run: taskrunner migrate")):
                if newest is None:
                    connection.execute("DELETE FROM schema_migrations WHERE name >= '0002'")
                for command in ("worker", "api"):
                    refused = newer.run(command, env={"TASKRUNNER_DATABASE_URL": server.url})
                    assert refused.code == 2, refused
                    assert is_one_line(refused), refused
                    assert words in refused.err
    finally:
        await server.child.stop()
