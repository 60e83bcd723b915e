"""A backend of each kind that runs workspaces on this host, on a home and a repository of the test's own.

PYTEST_DONT_REWRITE: test modules import this before pytest makes it a plugin.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.backends.host import HostBackend
from messages.statuses import BackendKind
from tests.support.git_repositories import make_dirty, make_repository
from tests.support.hosts import BACKENDS

SECRET = "a-worker-secret-value"
"""Stands in the environment of the worker whose backend it is."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with half-done work of its user in it."""
    repository = make_repository(tmp_path / "repository")
    make_dirty(repository)
    return repository


@pytest.fixture(params=list(BACKENDS), ids=[kind.value for kind in BACKENDS])
def kind(request: pytest.FixtureRequest) -> BackendKind:
    return request.param


@pytest.fixture
async def backend(kind: BackendKind, home: Path) -> AsyncIterator[HostBackend]:
    """A backend of each kind; what it made is taken down with the test."""
    environ = {**os.environ, "WORKER_SECRET": SECRET}
    backend = BACKENDS[kind](home, environ=environ, stop_grace_seconds=5)
    yield backend
    for compute in await backend.list_owned():
        await backend.destroy(compute)
