"""An image that knows nothing of us: it answers HTTP, and is ready when that says so."""

import asyncio

import httpx

from activities.errors import WorkspaceUnreachable
from activities.harness_client import HarnessClient
from messages.statuses import Readiness
from tests.integration.containers.conftest import Workshop
from tests.support.docker import BARE_SERVER, Daemon, build_image


async def first_answer(client: HarnessClient) -> str:
    """Return what the server says as soon as it says anything; nothing announces that an image's server listens."""
    for _ in range(200):
        try:
            await client.health(timeout_seconds=3)
        except WorkspaceUnreachable as e:
            if "answered" in str(e):
                return str(e)
        await asyncio.sleep(0.05)
    raise AssertionError("it never answered")


async def test_an_open_port_is_not_ready_and_a_healthy_application_is(workshop: Workshop, daemon: Daemon) -> None:
    """S15: without Python, git or an agent of ours in the image."""
    image = build_image(daemon, "RUN rm /usr/bin/python3", BARE_SERVER)
    spec = workshop.spec(image=image, container={"workspace_agent": "none", "port": 8080}, agent={"kind": "harnessd"})
    backend = workshop.backend(open_door=None)  # it calls nobody back
    assert await backend.check(spec.task) is None
    handle = await backend.provision(spec)
    try:
        assert (handle.readiness, handle.agent) == (Readiness.PROBE, False)
        async with httpx.AsyncClient(trust_env=False) as http:
            client = HarnessClient(http, handle.harness_url)
            assert "answered 503 starting" in await first_answer(client)
            ran = daemon.client().exec_create(spec.compute.name, ["touch", "/taskrunner/checkout/go"])
            daemon.client().exec_start(ran["Id"])
            await client.health(timeout_seconds=3)
        kept = await backend.save_result(spec.compute, None)
        assert kept
        assert kept.result.files_changed == 1
    finally:
        await backend.destroy(spec.compute)
