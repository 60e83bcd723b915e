"""Where containers reach the embedded stack's API."""

from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from api.dependencies import ApiDependencies
from api.templates import TemplateFolder
from cli.doors import CallbackDoors
from messages.keys import Keyring
from store.registry import Registry

pytest_plugins = ["tests.support.temporal"]


@pytest.fixture
def given(registry: Registry, temporal: Client, keys: Keyring) -> ApiDependencies:
    return ApiDependencies(
        registry=registry, temporal=temporal, keys=keys, templates=TemplateFolder(), host_id="h", environ={}
    )


async def test_a_door_leads_to_the_callbacks_alone(given: ApiDependencies, tmp_path: Path) -> None:
    """S35: whoever is in a container meets no user's route there, whatever credentials they have."""
    async with CallbackDoors(given, tmp_path) as doors, httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{await doors.open('127.0.0.1')}"
        assert (await client.post(f"{url}/api/workspaces/w-1/ready", json={})).status_code == 401
        for path in ("/api/tasks", "/api/workspaces", "/api/workspaces/w-1", "/docs", "/openapi.json", "/healthz"):
            assert (await client.get(url + path)).status_code == 404, path
        assert (await client.post(f"{url}/api/tasks", json={"prompt": "true"})).status_code == 404


async def test_it_stays_where_it_was(given: ApiDependencies, tmp_path: Path) -> None:
    """S12: a container that outlives a stack reports to the next one at the address that it knows."""
    async with CallbackDoors(given, tmp_path) as doors:
        port = await doors.open("127.0.0.1")
        assert await doors.open("127.0.0.1") == port
    async with CallbackDoors(given, tmp_path), httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"http://127.0.0.1:{port}/api/workspaces/w-1/ready", json={})
        assert answer.status_code == 401


async def test_an_address_that_is_not_here_is_an_error_for_whoever_asks(given: ApiDependencies, tmp_path: Path) -> None:
    async with CallbackDoors(given, tmp_path) as doors:
        with pytest.raises(OSError, match="assign"):
            await doors.open("192.0.2.1")
