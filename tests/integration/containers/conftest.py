"""A Docker daemon for all tests here, and what each of them must leave behind: nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.backends.container import ContainerBackend
from activities.backends.contract import WorkspaceSpec
from messages.statuses import BackendKind
from tests.support.callback_api import CallbackApi
from tests.support.docker import IMAGE, Daemon
from tests.support.git_repositories import git, make_repository
from tests.support.hosts import HOST, make_spec, make_task
from tests.support.registry import Registry

INSTALLATION = "i-test"


@pytest.fixture(autouse=True)
def _leaves_nothing(leaves_no_container: None) -> None:
    """Every test here looks at what is left."""


@pytest.fixture
def api(daemon: Daemon) -> Iterator[CallbackApi]:
    """The API, where containers reach it."""
    with CallbackApi(host=daemon.gateway) as api:
        yield api


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


class Workshop:
    """Makes backends of one installation, and specs for them."""

    def __init__(self, daemon: Daemon, api: CallbackApi, folder: Path) -> None:
        self.daemon = daemon
        self.api = api
        self.folder = folder
        self._made: list[ContainerBackend] = []

    def backend(self, home: str = "home", **options: object) -> ContainerBackend:
        async def open_door(address: str) -> int:
            assert address == self.daemon.gateway
            return self.api.port

        (self.folder / home).mkdir(exist_ok=True)
        given = {"open_door": open_door, "installation_id": INSTALLATION, "environ": self.daemon.environ, **options}
        backend = ContainerBackend(self.folder / home, host_id=HOST, stop_grace_seconds=5, **given)
        self._made.append(backend)
        return backend

    def close(self) -> None:
        for backend in self._made:
            backend.docker.close()

    def spec(
        self, repository: Path | None = None, *, image: str = IMAGE, container: dict | None = None, **template: object
    ) -> WorkspaceSpec:
        task = make_task(BackendKind.CONTAINER, repository, container={"image": image, **(container or {})}, **template)
        return make_spec(task, git(repository, "rev-parse", "HEAD") if repository else None)


@pytest.fixture
def workshop(daemon: Daemon, api: CallbackApi, tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(daemon, api, tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    yield registry
    registry.close()
