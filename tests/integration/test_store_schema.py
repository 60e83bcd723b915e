"""The schema agrees with the Python side, and reaches each database exactly once."""

import ast
import asyncio
import inspect
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql

import messages.statuses
import store
from messages.statuses import EventKind
from store.errors import MigrationError, RegistryUnavailable
from store.registry import Registry
from store.schema import MIGRATIONS, check_schema, migrate

ENUMS = [
    kind
    for _, kind in inspect.getmembers(messages.statuses, inspect.isclass)
    if issubclass(kind, StrEnum) and kind is not StrEnum
]


def _statements() -> list[tuple[str, str]]:
    """Every SQL statement of the registry, with where it stands."""
    found: list[tuple[str, str]] = []
    for module in sorted(Path(store.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = re.sub(r"--.*", "", node.value)
                if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|LISTEN|CREATE)\s", text):
                    found.append((f"{module.name}:{node.lineno}", text))
    return found


STATEMENTS = _statements()


def test_each_enumeration_is_the_same_in_postgresql_in_the_same_order(database_url: str) -> None:
    """S40."""
    with psycopg.connect(database_url) as connection:
        stored: dict[str, list[str]] = dict(
            connection.execute(
                "SELECT t.typname, array_agg(e.enumlabel::text ORDER BY e.enumsortorder)"
                " FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.typname"
            ).fetchall()
        )
    python = {
        re.sub(r"(?<!^)(?=[A-Z])", "_", enum.__name__).lower(): [member.value for member in enum] for enum in ENUMS
    }
    assert stored == python


def test_no_statement_names_a_value_itself() -> None:
    """Statuses, steps and kinds are parameters: what a statement quotes is never one of them.

    The migrations do name some, and PostgreSQL checks those when they are applied.
    """
    assert len(STATEMENTS) > 40
    allowed = {"prompt", "repository", "ref", "step", "at", "boot_log", "[]", "", "timezone", "UTC", "60s"}
    allowed |= {"env_names", "template", "heartbeat_interval", "idle_in_transaction_session_timeout"}
    for where, text in STATEMENTS:
        assert set(re.findall(r"'([^']*)'", text)) <= allowed, where


def test_every_statement_fits_the_schema(database_url: str) -> None:
    """PostgreSQL plans each one, so names and types are right even on a path that no other test takes."""
    wrong: list[str] = []
    with psycopg.connect(database_url, autocommit=True) as connection:
        for where, text in STATEMENTS:
            numbers: dict[str, int] = {}
            numbered = re.sub(
                r"%(?:\((\w+)\))?s", lambda m, n=numbers: f"${n.setdefault(m[1] or 'only', len(n) + 1)}", text
            )
            if re.match(r"\s*(LISTEN|CREATE)", text):
                continue
            try:  # GENERIC_PLAN: PostgreSQL 16 or newer
                connection.execute(sql.SQL(cast(Any, f"EXPLAIN (GENERIC_PLAN) {numbered}")))
            except psycopg.Error as e:
                wrong.append(f"{where}: {e}")
    assert not wrong, "\n".join(wrong)


def test_the_failure_event_index_covers_exactly_that_kind(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'events_one_failure_an_attempt'"
        ).fetchone()
    assert row
    assert f"'{EventKind.WORKSPACE_PROVISION_FAILED.value}'::event_kind" in row[0]


@pytest.fixture
def empty_database_url(postgres: str, database_url: str) -> str:
    """The database of the test, without anything in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return database_url


def test_a_migration_that_comes_before_an_applied_one_is_not_applied_after_it(
    empty_database_url: str, tmp_path: Path
) -> None:
    for name in ("0001_first", "0003_third"):
        (tmp_path / f"{name}.sql").write_text(f"CREATE TABLE t{name} ()")
    migrate(empty_database_url, folder=tmp_path)
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE second ()")
    with pytest.raises(MigrationError, match="0003_third and not 0002_second"):
        migrate(empty_database_url, folder=tmp_path)


async def test_migrations_that_run_at_once_are_applied_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(asyncio.to_thread(migrate, empty_database_url) for _ in range(4)))
    names = [file.stem for file in sorted(MIGRATIONS.glob("*.sql"))]
    assert sorted(applied) == [[], [], [], names]
    with psycopg.connect(empty_database_url) as connection:
        recorded = connection.execute("SELECT name FROM schema_migrations ORDER BY name").fetchall()
    assert [name for (name,) in recorded] == names


def test_a_database_of_a_newer_release_is_refused_and_left_alone(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations (name) VALUES ('9999_from_the_future')")
        with pytest.raises(MigrationError, match=r"newer release \(it has 9999_from_the_future"):
            migrate(database_url)
        count = connection.execute("SELECT count(*) FROM schema_migrations").fetchone()
    assert count == (len(list(MIGRATIONS.glob("*.sql"))) + 1,)


def test_a_process_refuses_a_database_of_another_release(empty_database_url: str) -> None:
    for _ in range(2):  # looking makes nothing
        with pytest.raises(MigrationError, match="run: taskrunner migrate"):
            check_schema(empty_database_url)
    migrate(empty_database_url)
    check_schema(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE name = '0001_registry'")
        with pytest.raises(MigrationError, match="run: taskrunner migrate"):
            check_schema(empty_database_url)
        connection.execute("INSERT INTO schema_migrations (name) VALUES ('9999_from_the_future')")
    with pytest.raises(MigrationError, match=r"newer release \(it has 9999_from_the_future"):
        check_schema(empty_database_url)


def test_a_migration_that_fails_changes_nothing_and_is_named(empty_database_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE good (id int);")
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (id int); SELECT nonsense;")
    with pytest.raises(MigrationError, match="0002_bad failed and changed nothing"):
        migrate(empty_database_url, folder=tmp_path)
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (id int);")
    assert migrate(empty_database_url, folder=tmp_path) == ["0002_bad"]


def test_migrating_without_a_server_says_so() -> None:
    with pytest.raises(RegistryUnavailable, match="cannot migrate the database"):
        migrate("postgresql://127.0.0.1:1/none")


async def test_a_database_without_the_schema_says_what_to_run(empty_database_url: str) -> None:
    async with Registry.connect(empty_database_url) as registry:
        with pytest.raises(MigrationError, match="taskrunner migrate"):
            await registry.ping()
        await asyncio.to_thread(migrate, empty_database_url)
        await registry.ping()
