"""A harness server in a container: started by our agent there, and started by an image that knows nothing of us."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from activities.errors import WorkspaceUnreachable
from activities.harness_client import HarnessClient
from tests.integration.containers.conftest import Workshop
from tests.support import harness_server
from tests.support.agent_process import TOKEN
from tests.support.docker import Daemon, build_image
from tests.support.git_repositories import git

SERVER = Path(harness_server.__file__).read_bytes()
SECRET = "a-key-that-nobody-may-see"


@asynccontextmanager
async def harness(url: str, token: str = "") -> AsyncIterator[HarnessClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield HarnessClient(client, url, token)


async def runs_to_its_end(client: HarnessClient, prompt: str) -> str:
    """Run a prompt and return the last thing that was said."""
    run_id = await client.start_run(prompt, "s-1")
    async with asyncio.timeout(20), client.events(run_id) as events:
        assert events is not None
        return [event async for event in events][-1].payload["output"]


async def test_our_agent_starts_it_and_its_secrets_are_in_no_configuration_of_docker(
    workshop: Workshop, daemon: Daemon, repository: Path
) -> None:
    """S37"""
    (repository / "server.py").write_bytes(SERVER)
    git(repository, "add", "server.py")
    git(repository, "commit", "-qm", "A harness")
    agent = {
        "kind": "harnessd",
        "command": ["python3", "server.py"],
        "env": {"HARNESS_STATE": "/tmp", "HARNESS_FAULTS": "needs token"},
        "token_env": "HARNESS_TOKEN",
    }
    spec = workshop.spec(repository, agent=agent, required_env=("HARNESS_TOKEN",))
    spec = replace(spec, harness_env={"HARNESS_TOKEN": SECRET})
    backend = workshop.backend()
    handle = await backend.provision(spec)
    try:
        assert handle.agent
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("ready") == 1)
        async with harness(handle.harness_url, TOKEN) as client:
            assert await runs_to_its_end(client, "run touch made\nsay done") == "done"
        assert SECRET not in json.dumps(daemon.client().inspect_container(spec.compute.name))
        assert SECRET not in json.dumps(daemon.client().top(spec.compute.name))
        chunks, _ = daemon.client().get_archive(spec.compute.name, "/taskrunner")
        assert SECRET.encode() not in b"".join(chunks), "a container that is kept keeps no key"
    finally:
        await backend.destroy(spec.compute)


async def test_an_exit_before_ready_is_reported_with_its_log(workshop: Workshop, repository: Path) -> None:
    """S14"""
    agent = {"kind": "harnessd", "command": ["sh", "-c", "echo no prompts here; exit 3"]}
    backend, spec = workshop.backend(), workshop.spec(repository, agent=agent)
    await backend.provision(spec)
    try:
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("provisioning-failed") == 1)
        failed = workshop.api.find("provisioning-failed")
        assert failed["error_message"].startswith("the harness exited with 3 before it was ready")
        assert failed["log_tail"] == "no prompts here\n"
    finally:
        await backend.destroy(spec.compute)


async def test_an_image_that_starts_its_own_is_spoken_to_directly(workshop: Workshop, daemon: Daemon) -> None:
    """S15: its port is published before anything listens. What its template says of the environment it is given."""
    image = build_image(
        daemon,
        f"RUN echo {base64.b64encode(SERVER).decode()} | base64 -d > /server.py",
        'CMD ["python3", "/server.py"]',
    )
    container = {"workspace_agent": "none", "port": 8080}
    agent = {"kind": "harnessd", "env": {"HARNESS_ADDR": "0.0.0.0:{port}"}}
    backend, spec = workshop.backend(), workshop.spec(image=image, container=container, agent=agent)
    spec = replace(spec, template=spec.template.model_copy(update={"env": {"HARNESS_STATE": "/tmp"}}))
    handle = await backend.provision(spec)
    try:
        assert not handle.agent
        async with harness(handle.harness_url) as client, asyncio.timeout(20):
            while True:
                try:
                    await client.health(timeout_seconds=3)
                    break
                except WorkspaceUnreachable:
                    await asyncio.sleep(0.05)  # as the probe does
            assert await runs_to_its_end(client, "say hello") == "hello"
    finally:
        await backend.destroy(spec.compute)


@pytest.mark.parametrize("path", ["/v1/runs", "/harness/restart"])
async def test_without_the_attempts_token_nobody_reaches_it(workshop: Workshop, path: str) -> None:
    """S35"""
    backend, spec = workshop.backend(), workshop.spec(agent={"kind": "harnessd", "command": ["sleep", "1000"]})
    handle = await backend.provision(spec)
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while True:
                try:
                    answer = await client.post(f"{handle.harness_url}{path}", json={})
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)  # the container's program is starting
        assert answer.status_code == 401
    finally:
        await backend.destroy(spec.compute)
