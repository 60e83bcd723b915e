"""One set of servers, with an API and no worker, for all end-to-end tests; and what each test must leave behind."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest

from messages.keys import create_keys
from store.registry import Registry
from tests.support.cli import Cli, private_cli
from tests.support.docker import Daemon
from tests.support.git_repositories import make_repository
from tests.support.stack import API_TOKEN, CLI, Door, Gate, Process, Stack, service_environment
from tests.support.temporal import stack_temporal
from workers.client import connect


@pytest.fixture(scope="session")
async def services(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Temporal, PostgreSQL and the API as processes of their own."""
    home = tmp_path_factory.mktemp("services")
    (home / "logs").mkdir()
    (home / "templates").mkdir()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE services TEMPLATE migrated")
    url = postgres.replace("/postgres?", "/services?", 1)
    async with AsyncExitStack() as parts:
        temporal = await parts.enter_async_context(stack_temporal(home))
        keys = create_keys(home / "keys.json")
        env = service_environment(
            TEMPORAL_ADDRESS=temporal.address,
            TASKRUNNER_DATABASE_URL=url,
            TASKRUNNER_KEYS_FILE=str(home / "keys.json"),
            TASKRUNNER_TEMPLATES=str(home / "templates"),
            TASKRUNNER_API_TOKEN=API_TOKEN,
            TASKRUNNER_HOME=str(home),
        )
        api = await Process.start([*CLI, "api", "--port", "0"], env)
        parts.push_async_callback(api.stop)
        api_url = (await api.said(r"answers at (http://\S+)"))[0][1]
        registry = await parts.enter_async_context(Registry.connect(url))
        stack = Stack(api, registry, await connect(temporal.address), keys, {**env, "TASKRUNNER_PUBLIC_URL": api_url})
        parts.push_async_callback(stack.user.aclose)
        yield stack


@pytest.fixture
async def stack(services: Stack) -> AsyncIterator[Stack]:
    """The services; after the test, no process of its workspaces may be left."""
    services.tasks.clear()
    yield services
    left = await services.left_over()
    await services.clean_up()
    assert left == {}


@pytest.fixture(scope="session")
async def container_env(services: Stack, daemon: Daemon) -> AsyncIterator[dict[str, str]]:
    """What a worker's environment needs to have its containers report to the services."""
    async with Door(services.url, daemon.gateway) as door:
        await door.open()
        docker = {name: value for name, value in daemon.environ.items() if name.startswith("DOCKER_")}
        yield {**docker, "TASKRUNNER_PUBLIC_URL": door.url}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the module's worker."""
    return tmp_path_factory.mktemp("worker") / "home"


@pytest.fixture(scope="module")
def worker_env() -> dict[str, str]:
    """What the module's worker has in its environment besides; a module may say otherwise."""
    return {}


@pytest.fixture(scope="module")
async def worker(
    request: pytest.FixtureRequest, services: Stack, home: Path, worker_env: dict[str, str]
) -> AsyncIterator[Process]:
    """One worker, of the host that the module calls ``HOST``, for all of its tests."""
    async with services.worker(request.module.HOST, home, **worker_env) as worker:
        yield worker


@pytest.fixture
def cli() -> Iterator[Cli]:
    """The command, in a home of its own."""
    with private_cli() as cli:
        yield cli


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    return make_repository(tmp_path / "repository")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A pipe at which a program of the test waits."""
    gate = Gate(tmp_path)
    yield gate
    gate.close()
