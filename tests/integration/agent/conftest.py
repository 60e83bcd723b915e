"""The real workspace agent as a process, and a real HTTP server as its API."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import AgentProcess, build
from tests.support.callback_api import CallbackApi

Make = Callable[..., AgentProcess]


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("zipapp"))


@pytest.fixture
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
def make(tmp_path: Path, zipapp: Path, api: CallbackApi) -> Iterator[Make]:
    made: list[AgentProcess] = []

    def make(**config: Any) -> AgentProcess:
        folder = tmp_path / f"workspace-{len(made)}"
        folder.mkdir()
        made.append(AgentProcess(folder, zipapp, api.url, **config))
        return made[-1]

    yield make
    for agent in made:
        agent.clean_up()
