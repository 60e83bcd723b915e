"""Looking whether containers work on a machine, before a task needs one."""

import socket

import pytest

from activities.backends.container_check import check_callback
from activities.errors import BackendUnusable
from tests.support.docker import IMAGE, Daemon


async def test_a_container_calls_back(daemon: Daemon) -> None:
    url = await check_callback(daemon.environ, IMAGE)
    assert url.startswith("http://host.docker.internal:")


async def test_what_it_cannot_reach_is_told(daemon: Daemon) -> None:
    with socket.socket() as free:
        free.bind((daemon.gateway, 0))
        url = f"http://{daemon.gateway}:{free.getsockname()[1]}"
        with pytest.raises(BackendUnusable, match=rf"a container cannot reach {url} \(.*refused.*firewall"):
            await check_callback(daemon.environ, IMAGE, public_url=url)


async def test_an_image_that_is_not_there_is_told(daemon: Daemon) -> None:
    with pytest.raises(BackendUnusable, match="a container of not-there:1 cannot be run: No such image"):
        await check_callback(daemon.environ, "not-there:1")
