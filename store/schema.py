"""The numbered migrations, and who may apply them when."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString, NamedTuple, cast

import psycopg

from store.conninfo import check_database_url
from store.errors import MigrationError, RegistryUnavailable

MIGRATIONS = Path(__file__).with_name("migrations")
"""The folder of the migrations, in a checkout as in an installed wheel."""

_LOCK_KEY = 7_236_114_905_518
"""Any number, the same in every release: two releases must not migrate at once either."""

_LOCK = "SELECT pg_advisory_lock(%s)"
_CREATE_LEDGER = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name text PRIMARY KEY,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
_LEDGER = "schema_migrations"
_HAS_LEDGER = "SELECT to_regclass(%s) IS NOT NULL"
_APPLIED = "SELECT name FROM schema_migrations"
_RECORD = "INSERT INTO schema_migrations (name) VALUES (%s)"


def migrate(url: str, *, folder: Path = MIGRATIONS) -> list[str]:
    """Bring the database at ``url`` to this release's schema and return the names of the migrations applied now.

    Each migration is one transaction. Whoever comes while another migrates waits for it, and then finds nothing to do.
    Raises :class:`MigrationError` where the database was migrated by a newer release or a migration fails,
    :class:`RegistryUnavailable` where PostgreSQL cannot be reached, and :class:`InvalidDatabaseUrl` where ``url`` is
    no address.
    """
    check_database_url(url)
    files = {file.stem: file for file in sorted(folder.glob("[0-9]*.sql"))}
    if not files:
        raise MigrationError(f"no migrations in {folder}: the installation is incomplete")
    with _connected(url) as connection:
        connection.execute(_LOCK, (_LOCK_KEY,))  # held until the connection closes
        connection.execute(_CREATE_LEDGER)
        applied = {str(name) for (name,) in connection.execute(_APPLIED)}
        if newer := sorted(applied - files.keys()):
            raise _made_by_a_newer_release(newer)
        missing = [name for name in files if name not in applied]
        if applied and missing and missing[0] < max(applied):
            raise MigrationError(
                f"the database has {max(applied)} and not {missing[0]}, which comes before it: releases were mixed; "
                "restore the backup from before, or use another database"
            )
        for name in missing:
            _apply(connection, name, files[name].read_text(encoding="utf-8"))
    return missing


class SchemaState(NamedTuple):
    """A database as it is: ``server_version`` as libpq says it (180001), and migrations that only one side has."""

    server_version: int
    missing: list[str]
    newer: list[str]


def look_at_schema(url: str, *, timeout_seconds: int = 2, folder: Path = MIGRATIONS) -> SchemaState:
    """Return what :func:`migrate` would meet, changing nothing; ``timeout_seconds`` (2 at least) is for connecting.

    Raises :class:`RegistryUnavailable` where PostgreSQL cannot be reached or read.
    """
    check_database_url(url)
    known = {file.stem for file in folder.glob("[0-9]*.sql")}
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=timeout_seconds, application_name="taskrunner-doctor"
        ) as connection:
            is_there = connection.execute(_HAS_LEDGER, (_LEDGER,)).fetchone() == (True,)
            applied = {str(name) for (name,) in connection.execute(_APPLIED)} if is_there else set[str]()
            return SchemaState(connection.info.server_version, sorted(known - applied), sorted(applied - known))
    except psycopg.Error as e:
        raise RegistryUnavailable(str(e).strip()) from e


def check_schema(url: str, *, folder: Path = MIGRATIONS) -> None:
    """Return where the database has this release's schema; raise what :func:`migrate` raises where it has not."""
    state = look_at_schema(url, timeout_seconds=10, folder=folder)
    if state.newer:
        raise _made_by_a_newer_release(state.newer)
    if state.missing:
        raise MigrationError("the database lacks this release's schema; run: taskrunner migrate")


def _made_by_a_newer_release(newer: list[str]) -> MigrationError:
    return MigrationError(
        f"the database was migrated by a newer release (it has {newer[-1]}, which this release does not know); "
        "use that release, or another database"
    )


@contextmanager
def _connected(url: str) -> Generator[psycopg.Connection]:
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=10, application_name="taskrunner-migrate"
        ) as connection:
            yield connection
    except psycopg.OperationalError as e:
        raise RegistryUnavailable(f"cannot migrate the database: {str(e).strip()}") from e


def _apply(connection: psycopg.Connection, name: str, text: str) -> None:
    try:
        with connection.transaction():
            connection.execute(cast(LiteralString, text))  # our own file
            connection.execute(_RECORD, (name,))
    except psycopg.OperationalError:
        raise
    except psycopg.Error as e:
        raise MigrationError(f"migration {name} failed and changed nothing: {str(e).strip()}") from e
