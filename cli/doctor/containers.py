"""The backend ``container``: its daemon, and whether what runs in a container reaches the API."""

import asyncio
import json
import os
import shutil
from dataclasses import replace

from activities.backends.container_check import Inside, Looked, NothingToLookWith, check_callback
from activities.backends.container_reach import Reach
from activities.backends.docker_engine import DEFAULT_ADDRESS, Docker, said
from activities.errors import BackendAway, BackendUnusable
from api.templates import TemplateError, TemplateFolder
from cli.discovery import Service
from cli.doctor.check import Check, broken, from_error, not_needed, ok
from cli.doctor.programs import installing
from cli.home import StackRecord, read_doors
from messages.names import SERVICE
from messages.settings import Settings
from messages.templates import ContainerConfig, WorkspaceAgent
from messages.urls import is_loopback

_NAME = "containers"


class ContainerLook:
    """Looks once, for ``seconds`` at most; its container is gone when it is closed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._docker = Docker(os.environ, timeout=seconds)
        self._inside = Inside(self._docker)

    def daemon(self) -> Check:
        """Check that the daemon answers, asked as the worker asks it: no program of Docker's needs to be here."""
        from docker.errors import APIError

        try:
            # On a connection of its own: a daemon that hangs holds up what comes after it.
            version = self._docker.call_blocking(lambda client: client.version()["Version"], timeout=self._seconds)
        except BackendAway as e:
            if e.__cause__ and isinstance(refusal := e.__cause__.__cause__, APIError):  # of what the SDK asks first
                return self._refused("docker", refusal)
            if not os.environ.get("DOCKER_HOST") and not shutil.which("docker") and not shutil.which("dockerd"):
                return broken("docker", "no docker on PATH", "Docker is not installed", installing("docker.io"))
            problem, _, mend = str(e).partition("; ")
            usual = self._docker.address == DEFAULT_ADDRESS
            return broken("docker", self._address(), problem, "sudo systemctl start docker" if usual else mend)
        except BackendUnusable as e:
            return from_error("docker", self._address(), e)
        except APIError as e:
            return self._refused("docker", e)
        return ok("docker", f"{version} ({self._address()})")

    def embedded(self, settings: Settings, record: StackRecord | None, service: Service | None) -> Check:
        """Check that containers reach the embedded stack's API, or that they would: the bridge's gateway, if no URL."""
        url = settings.public_url
        if url and service is None:
            return _not_looked(f"no service runs that would answer at {url}", "taskrunner dev, then taskrunner doctor")
        doors = read_doors(settings.home) if record is not None and record.is_alive else {}
        return self._check(settings, url, doors)

    def of_services(self, settings: Settings) -> Check:
        """Check that containers reach the API that a worker of its own tells them."""
        url = settings.public_url or settings.api_url
        return self._check(settings, url if url and (settings.public_url or not is_loopback(url)) else None, None)

    def close(self) -> None:
        """End the look, if it goes on."""
        self._inside.close()
        self._docker.close()

    def _check(self, settings: Settings, url: str | None, doors: dict[str, int] | None) -> Check:
        from docker.errors import APIError

        try:
            containers = _containers(settings)
        except TemplateError as e:
            return _not_looked(f"the templates cannot be read: {e}")
        try:
            looked = asyncio.run(self._look(containers, url, doors))
            self._check_publish(containers)
        except BackendAway as e:
            return _not_looked(str(e).partition("; ")[0])
        except NothingToLookWith as e:
            return _not_looked("Docker has no image from which one could look", f"docker pull {e}")
        except BackendUnusable as e:
            return from_error(_NAME, self._address(), e)
        except APIError as e:
            return self._refused(_NAME, e)
        if url and not _is_ours(looked):
            problem = f"what answers at {url} is not taskrunner's API: {looked.answer or 'an empty page'}"
            return broken(_NAME, f"from a container of {looked.image}", problem, "correct TASKRUNNER_PUBLIC_URL")
        return ok(_NAME, f"a container of {looked.image} reached {looked.url}")

    async def _look(self, containers: list[ContainerConfig], url: str | None, doors: dict[str, int] | None) -> Looked:
        async def door(address: str) -> int:
            return (doors or {}).get(address, 0)

        await self._docker.call(lambda client: client.ping())
        images = [c.image for c in containers if c.workspace_agent is not WorkspaceAgent.NONE]
        return await check_callback(
            self._inside,
            self._docker,
            images,
            seconds=self._seconds,
            public_url=url,
            open_door=None if doors is None else door,
        )

    def _refused(self, name: str, e: Exception) -> Check:
        """Return what a daemon says that answers, and does not do what it is asked: a plugin's refusal, or a defect."""
        mend = "journalctl -u docker, where its log says more; or set DOCKER_HOST to another daemon"
        return broken(name, self._address(), f"Docker answers with an error: {said(e)}", mend)

    def _address(self) -> str:
        try:
            return self._docker.address
        except BackendUnusable:
            return "no daemon that could be asked"

    def _check_publish(self, containers: list[ContainerConfig]) -> None:
        """Raise ``BackendUnusable`` where no template publishes its port where the worker reaches it."""
        reach = Reach(self._docker, None, None)
        for container in containers:
            try:
                reach.check_publish(container.publish)
            except BackendUnusable:
                if container is containers[-1]:
                    raise
            else:
                return


def _containers(settings: Settings) -> list[ContainerConfig]:
    """Return what templates say of containers; the user's before the built-in ones'."""
    own = TemplateFolder(settings.templates).all()
    builtin = {template.name for template in TemplateFolder().all()}
    ordered = sorted(own, key=lambda template: template.name in builtin)
    return [template.container for template in ordered if template.container is not None]


def _is_ours(looked: Looked) -> bool:
    try:
        return json.loads(looked.answer).get("service") == SERVICE
    except (ValueError, AttributeError):
        return False


def _not_looked(why: str, mend: str | None = None) -> Check:
    return replace(not_needed(_NAME, f"not looked at: {why}"), mend=mend)
