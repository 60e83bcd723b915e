"""A Docker daemon on another machine: nothing but its API and its network is shared with it."""

import asyncio
import gc
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activities.backends.docker_engine import Docker
from activities.errors import BackendAway, BackendUnusable
from tests.integration.containers.conftest import Workshop
from tests.integration.containers.test_container_life import run
from tests.support.docker import Daemon, remote_daemon


@pytest.fixture
def remote(daemon: Daemon) -> Iterator[dict[str, str]]:
    """The environment of whoever reaches the daemon over TCP at an address that is not loopback."""
    with remote_daemon(daemon) as host:
        yield {**daemon.environ, "DOCKER_HOST": host}


async def test_preflight_says_what_to_set(workshop: Workshop, daemon: Daemon, remote: dict[str, str]) -> None:
    backend = workshop.backend(environ=remote)
    with pytest.raises(BackendUnusable, match=r"set container\.publish in the template to an address of that machine"):
        await backend.check(workshop.spec().task)
    spec = workshop.spec(container={"publish": daemon.gateway})
    with pytest.raises(BackendUnusable, match="set TASKRUNNER_PUBLIC_URL to the URL at which containers there reach"):
        await backend.check(spec.task)
    for url in ("http://127.0.0.1:8070", "http://localhost:8070"):
        with pytest.raises(BackendUnusable, match="which inside a container is the container itself"):
            await workshop.backend(environ=remote, public_url=url).check(spec.task)


@pytest.mark.parametrize("publish", ["{gateway}", "0.0.0.0"])
async def test_a_workspace_lives_there(
    workshop: Workshop, daemon: Daemon, remote: dict[str, str], publish: str
) -> None:
    backend = workshop.backend(environ=remote, public_url=workshop.api.url)
    spec = workshop.spec(container={"publish": publish.format(gateway=daemon.gateway)})
    assert await backend.check(spec.task) is None
    handle = await backend.provision(spec)
    try:
        assert handle.harness_url.startswith(f"http://{daemon.gateway}:")
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("ready") == 1)
        await run(handle.harness_url, spec, "echo new > new.txt")
        kept = await backend.save_result(spec.compute, None)
        assert kept
        assert kept.result.files_changed == 1
    finally:
        await backend.destroy(spec.compute)


async def test_without_anybody_who_opens_a_door_a_url_is_needed(workshop: Workshop) -> None:
    backend = workshop.backend(open_door=None)
    with pytest.raises(BackendUnusable, match="set TASKRUNNER_PUBLIC_URL"):
        await backend.check(workshop.spec().task)


_SSH = """#!{python}
import os, socket, sys, threading
with open({log!r}, "a") as log:
    print(*sys.argv[1:], file=log)
daemon = socket.socket(socket.AF_UNIX)
daemon.connect({socket!r})
def ask():
    while data := os.read(0, 65536):
        daemon.sendall(data)
    daemon.shutdown(socket.SHUT_WR)
threading.Thread(target=ask, daemon=True).start()
while data := daemon.recv(65536):
    os.write(1, data)
"""


@pytest.fixture
def ssh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All of PATH. The SDK leaves its ssh and a socket to the garbage collector, which warns of both."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield tmp_path
        gc.collect()


def version_over(host: str) -> Any:
    docker = Docker({"DOCKER_HOST": host})
    try:
        return docker.call_blocking(lambda client: client.version())
    except BackendAway as e:
        return str(e)
    finally:
        docker.close()


def test_ssh_is_the_user_s_own(daemon: Daemon, ssh_folder: Path) -> None:
    log, ssh = ssh_folder / "log", ssh_folder / "ssh"
    ssh.write_text(_SSH.format(python=sys.executable, log=str(log), socket=str(daemon.socket)))
    ssh.chmod(0o755)
    assert version_over("ssh://me@docker.example.org:2222") == daemon.client().version()
    assert set(log.read_text().splitlines()) == {"-l me -p 2222 -- docker.example.org docker system dial-stdio"}


def test_an_ssh_that_does_not_get_there_is_told_with_what_to_try(ssh_folder: Path) -> None:
    assert version_over("ssh://h").endswith("see what this says as the worker's user: ssh ssh://h docker version")
