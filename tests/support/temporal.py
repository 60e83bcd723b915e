"""A real Temporal development server for tests.

Use it as a plugin, so that every module shares one server::

    pytest_plugins = ["tests.support.temporal"]

PYTEST_DONT_REWRITE: test modules import this before pytest makes it a plugin.
"""

import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from messages.search_attributes import SEARCH_ATTRIBUTES
from workers.temporal_binary import obtain_temporal
from workers.temporal_server import TemporalServer, choose_port, start_temporal


def dev_server_path() -> str:
    """Return the Temporal CLI's path: TASKRUNNER_TEMPORAL_BIN, PATH, our cache. None there: fails on CI, else skips."""
    named = os.environ.get("TASKRUNNER_TEMPORAL_BIN")
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskrunner" / "bin" / "temporal"
    for candidate in (named, shutil.which("temporal"), str(cached)):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    reason = (
        f"no Temporal CLI: set TASKRUNNER_TEMPORAL_BIN, put 'temporal' on PATH or at {cached}"
        " (go install github.com/temporalio/cli/cmd/temporal@v1.5.1)"
    )
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class DevServer:
    """A development server that can be stopped and started again, on the same port and with the same data."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "temporal.db"
        self._env: WorkflowEnvironment | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._env = await WorkflowEnvironment.start_local(
            port=self.port,
            dev_server_existing_path=dev_server_path(),
            dev_server_database_filename=str(self._database),
            dev_server_log_level="error",
            search_attributes=SEARCH_ATTRIBUTES,
        )

    async def stop(self) -> None:
        if self._env is not None:
            await self._env.shutdown()
            self._env = None

    async def client(self) -> Client:
        """Return a client that connects when it is first used."""
        return await Client.connect(self.address, lazy=True, data_converter=pydantic_data_converter)


def free_port() -> int:
    """Return a port that nobody listens on."""
    return choose_port(0, preferred=0, purpose="a test", option="--port")


@asynccontextmanager
async def stack_temporal(home: Path) -> AsyncIterator[TemporalServer]:
    """The Temporal that an embedded stack starts, on free ports; ``home`` has a folder for logs."""
    program = await obtain_temporal(None, print)
    server = await start_temporal(program, home, port=free_port(), ui_port=free_port())
    try:
        yield server
    finally:
        await server.child.stop()


@pytest.fixture(scope="session")
async def temporal_env() -> AsyncIterator[WorkflowEnvironment]:
    """One development server for the whole test run; give each test's workflows ids and task queues of their own."""
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=dev_server_path(),
        dev_server_log_level="error",
        search_attributes=SEARCH_ATTRIBUTES,
        data_converter=pydantic_data_converter,
    ) as env:
        yield env


@pytest.fixture
def temporal(temporal_env: WorkflowEnvironment) -> Client:
    """A client of the shared server, with the pydantic data converter."""
    return temporal_env.client


@pytest.fixture
async def dev_server(tmp_path: Path) -> AsyncIterator[DevServer]:
    """A server of the test's own, not started yet."""
    server = DevServer(tmp_path)
    yield server
    await server.stop()
