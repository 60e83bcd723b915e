"""How long a container task takes to be ready, against ``docker run`` of the same image, taken in turn."""

import asyncio
import hashlib
import http.client
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle

from activities.backends import container_spec
from activities.backends.docker_engine import Docker
from activities.backends.zipapp import agent_zipapp
from activities.errors import ActivityFailure
from api.templates import TemplateFolder
from cli.bench.errors import NotMeasured
from cli.bench.workplace import Stack, Workplace, run_program
from cli.client import ApiClient
from cli.errors import CliError
from messages.names import WORKSPACE_READY, random_id
from messages.tasks import Repository, TaskRequest

WORKSPACE_IMAGE = "taskrunner-workspace"
"""What ``make workspace-image`` builds."""

_TEMPLATE = "bench-container"
_ASK_EVERY_SECONDS = 0.003
_HEALTHY_SECONDS = 60.0

Samples = tuple[list[float], list[float]]
"""Ours, and the floor's, taken in turn."""


class Image:
    """The image that is measured. ``has_agent``: it starts our agent by itself; into any other it is put."""

    def __init__(self, name: str, found: Mapping[str, Any]) -> None:
        self.name = name
        config: dict[str, Any] = found.get("Config") or {}
        entrypoint: list[str] = config.get("Entrypoint") or []
        self.has_agent = any(part.endswith("agent.pyz") for part in entrypoint)

    def template(self) -> str:
        """Return a template with it, as YAML."""
        container = {"image": self.name, "workspace_agent": "image" if self.has_agent else "mount"}
        return json.dumps({"name": _TEMPLATE, "backend": "container", "container": container})


async def find_image(named: str | None) -> Image:
    """Return the image that was ``named``, else the one that users build, else the built-in template's.

    Raises :class:`NotMeasured`, saying what is missing, where there is none or no daemon of this machine.
    """
    from docker.errors import APIError

    if shutil.which("docker") is None:
        raise NotMeasured("docker is not on PATH: what it runs is the floor")
    docker = Docker(os.environ)
    builtin = TemplateFolder().find("container").container
    wanted = [named] if named else [WORKSPACE_IMAGE, *([builtin.image] if builtin else [])]
    try:
        if docker.remote_host:
            raise NotMeasured(f"Docker is on {docker.remote_host}: bench measures with a daemon of this machine")
        for name in wanted:
            with suppress(APIError):
                return Image(name, await docker.call(lambda client, name=name: client.inspect_image(name)))
    except ActivityFailure as e:
        raise NotMeasured(str(e)) from e
    finally:
        docker.close()
    if named:
        raise NotMeasured(f"Docker has no image {named}: docker pull {named}")
    raise NotMeasured(f"Docker has no image {' or '.join(wanted)}: make workspace-image, or name one with --image")


async def container_ready(stack: Stack, place: Workplace, image: Image, n: int) -> Samples:
    """Return the seconds from a task's submission until its workspace's ready signal, and until ``docker run`` is.

    That is ready when its ``/healthz`` says so. Both run with the same options and the same agent.
    """
    (place.templates / f"{_TEMPLATE}.yaml").write_text(image.template())
    floor_of = await asyncio.to_thread(_Floor, place, stack.home, image)
    ours: list[float] = []
    floor: list[float] = []
    async with ApiClient(stack.service) as api:
        for number in range(n + 1):
            request = TaskRequest(
                id=random_id("t"),
                prompt="true",
                template=_TEMPLATE,
                repository=Repository(path=str(place.repository)),
            )
            submitted = time.time()
            task = await api.submit(request)
            handle = stack.temporal.get_workflow_handle(task.workflow_id)
            await handle.result()
            real = await _signalled_at(handle) - submitted
            async with floor_of.running() as took:
                if number > 0:  # the first of each finds nothing loaded
                    ours.append(real)
                    floor.append(took)
    return ours, floor


async def _signalled_at(handle: WorkflowHandle[Any, Any]) -> float:
    """Return when the workspace said that it is ready, in seconds since 1970, by the history's clock."""
    async for event in handle.fetch_history_events():
        signalled = event.workflow_execution_signaled_event_attributes  # empty in any other event
        if signalled.signal_name == WORKSPACE_READY:
            return event.event_time.ToNanoseconds() / 1e9
    raise CliError(f"the history of {handle.id} has no signal {WORKSPACE_READY}")


class _Floor:
    """``docker run`` of the image: the agent serves, and has nobody to report to."""

    def __init__(self, place: Workplace, home: Path, image: Image) -> None:
        self._place = place
        self._image = image
        self._token = secrets.token_urlsafe()
        self._config = place.folder / "floor.json"
        self._config.write_text(
            json.dumps(
                {
                    "workspace_id": "w-floor",
                    "attempt": 1,
                    "name": "floor",
                    "api_url": "http://127.0.0.1:9",
                    "callback_token": "none",
                    "agent_token_sha256": hashlib.sha256(self._token.encode()).hexdigest(),
                    "workspace": "/",
                    "state": "/tmp/agent",  # noqa: S108 (a container's own, where every image's user may write)
                    "listen": {"host": "0.0.0.0", "port": container_spec.AGENT_PORT},  # noqa: S104 (published on one)
                }
            )
        )
        self._config.chmod(0o644)  # the image's user reads it; it opens nothing but this container
        self._options = [
            *("--init", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "4096"),
            *("--add-host", f"{container_spec.HOST_NAME}:host-gateway"),
            *("--volume", f"{self._config}:/taskrunner/config.json:ro"),
        ]
        self._argv: list[str] = []
        if not image.has_agent:
            zipapp = agent_zipapp(home)
            self._options += ["--volume", f"{zipapp}:/taskrunner/agent.pyz:ro", "--entrypoint", "python3"]
            self._argv = ["-I", "/taskrunner/agent.pyz", "serve", "--config", "/taskrunner/config.json"]

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[float]:
        """Run one container; yield how many seconds it took until it was healthy."""
        name, port = f"tr-bench-{secrets.token_hex(4)}", _free_port()
        published = f"127.0.0.1:{port}:{container_spec.AGENT_PORT}"
        argv = ["docker", "run", "--detach", "--name", name, "--publish", published]
        started = time.monotonic()
        try:
            await self._docker(*argv[1:], *self._options, self._image.name, *self._argv)
            await asyncio.to_thread(self._until_healthy, port, started + _HEALTHY_SECONDS)
            yield time.monotonic() - started
        finally:
            await self._docker("rm", "--force", "--volumes", name)

    async def _docker(self, *args: str) -> None:
        await run_program(["docker", *args], dict(os.environ), self._place.folder)

    def _until_healthy(self, port: int, deadline: float) -> None:
        """Ask until the answer is 200: who runs a container by hand has nothing else to go by."""
        headers = {"Authorization": f"Bearer {self._token}"}
        while time.monotonic() < deadline:
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
                try:
                    connection.request("GET", "/healthz", headers=headers)
                    if connection.getresponse().status == 200:
                        return
                finally:
                    connection.close()
            time.sleep(_ASK_EVERY_SECONDS)
        raise CliError(f"docker run of {self._image.name} was not healthy within {_HEALTHY_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return int(any_socket.getsockname()[1])
