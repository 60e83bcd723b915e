"""Serving: bound sockets, ports in use, stopping."""

import asyncio
import socket

import httpx
import pytest
from temporalio.client import Client

from api.dependencies import ApiDependencies
from api.server import bind, serve
from api.templates import TemplateFolder
from messages.keys import Keyring
from store.registry import Registry

pytest_plugins = ["tests.support.temporal"]


@pytest.fixture
def given(registry: Registry, temporal: Client, keys: Keyring) -> ApiDependencies:
    return ApiDependencies(
        registry=registry, temporal=temporal, keys=keys, templates=TemplateFolder(), host_id="h", environ={}
    )


async def test_it_serves_a_bound_socket_until_it_is_told_to_stop(given: ApiDependencies) -> None:
    sock = bind("127.0.0.1", 0)
    stop = asyncio.Event()
    urls: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(10):
        serving = asyncio.create_task(serve(given, sock=sock, stop=stop, started=urls.put_nowait))
        url = await urls.get()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/healthz")).json() == {"status": "ok"}
            assert (await client.get(f"{url}/readyz")).json()["parts"] == {"temporal": "ok", "registry": "ok"}
        stop.set()
        await serving
    assert sock.fileno() == -1


async def test_cancelling_it_closes_the_socket(given: ApiDependencies) -> None:
    sock = bind("127.0.0.1", 0)
    urls: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(10):
        serving = asyncio.create_task(serve(given, sock=sock, started=urls.put_nowait))
        await urls.get()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert sock.fileno() == -1


async def test_a_port_in_use_is_an_os_error(given: ApiDependencies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await serve(given, "127.0.0.1", taken.getsockname()[1])
