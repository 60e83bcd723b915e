"""Serving: bound sockets, ports in use, stopping."""

import asyncio
import socket

import httpx
import pytest
from temporalio.client import Client

from api.dependencies import ApiDependencies
from api.server import bind, running
from api.templates import TemplateFolder
from messages.keys import Keyring
from store.registry import Registry

pytest_plugins = ["tests.support.temporal"]


@pytest.fixture
def given(registry: Registry, temporal: Client, keys: Keyring) -> ApiDependencies:
    return ApiDependencies(
        registry=registry, temporal=temporal, keys=keys, templates=TemplateFolder(), host_id="h", environ={}
    )


async def test_it_serves_a_bound_socket_for_as_long_as_it_is_wanted(given: ApiDependencies) -> None:
    sock = bind("127.0.0.1", 0)
    async with asyncio.timeout(10):
        async with running(given, sock=sock) as server, httpx.AsyncClient(trust_env=False) as client:
            url = server.url
            assert (await client.get(f"{url}/healthz")).json() == {"status": "ok", "service": "taskrunner"}
            assert (await client.get(f"{url}/readyz")).json()["parts"] == {"temporal": "ok", "registry": "ok"}
    assert sock.fileno() == -1
    assert server.task.done()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_told_to_whoever_asks_for_the_head_alone(given: ApiDependencies, path: str) -> None:
    """As load balancers do."""
    async with running(given, "127.0.0.1", 0) as server, httpx.AsyncClient(trust_env=False) as client:
        whole, head = await client.get(f"{server.url}{path}"), await client.head(f"{server.url}{path}")
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_cancelling_it_closes_the_socket(given: ApiDependencies) -> None:
    sock = bind("127.0.0.1", 0)
    started = asyncio.Event()

    async def serve() -> None:
        async with running(given, sock=sock):
            started.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        serving = asyncio.create_task(serve())
        await started.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert sock.fileno() == -1


async def test_a_port_is_taken_as_soon_as_it_is_bound() -> None:
    """Of two processes that start at the same time one is told at once, before it has done anything."""
    with bind("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", first.getsockname()[1])


async def test_a_port_in_use_is_an_os_error(given: ApiDependencies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with running(given, "127.0.0.1", taken.getsockname()[1]):
            pass
