"""Containers of one daemon that belong to us: each call says what went wrong in our own errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from activities.backends import container_spec as spec_of
from activities.backends.docker_engine import Docker, Sdk, explained, said, status_of
from activities.errors import BackendAway, NotRemoved, ProvisionFailed, ResultNotSaved
from messages.callbacks import log_tail
from messages.statuses import FailureSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activities.backends.contract import Compute, WorkspaceSpec

_LOG_LINES = 200
_LOOKS = 100
_LOOK_SECONDS = 0.1


class Containers:
    """The containers of one installation on one daemon, found by name and recognised by labels."""

    def __init__(self, docker: Docker, owner: spec_of.Ownership) -> None:
        self._docker = docker
        self._owner = owner

    async def find(self, compute: Compute) -> dict[str, Any] | None:
        """Return what Docker knows of the compute's container; None where there is none, or another's of that name."""
        found = await self._look(compute)
        return found if found and self._owner.owns(found, compute) else None

    async def _look(self, compute: Compute) -> dict[str, Any] | None:
        from docker.errors import NotFound

        try:
            return await self._docker.call(lambda client: client.inspect_container(compute.name))
        except NotFound:
            return None

    async def create(self, spec: WorkspaceSpec) -> dict[str, Any] | None:
        """Create the container. Raises ``ProvisionFailed``.

        Where another process does the same right now, its container is returned, once it runs or when it should.
        """
        from docker.errors import APIError

        arguments = spec_of.create_arguments(spec, self._owner)

        def create(client: Sdk) -> None:
            host_config = client.create_host_config(**arguments["host_config"])
            client.create_container(**{**arguments, "host_config": host_config})

        try:
            await self._docker.call(create)
            return None
        except APIError as e:
            if status_of(e) == 409:
                if found := await self._made_meanwhile(spec.compute):
                    return found
                raise ProvisionFailed(
                    f"there is a container {spec.compute.name!r} that is not ours; rename it: docker rename "
                    f"{spec.compute.name} other-{spec.compute.name}",
                    source=FailureSource.PROVIDER,
                ) from e
            name = spec_of.section(spec.template).image
            raise explained(e, doing=f"creating container {spec.compute.name}", image=name) from e

    async def _made_meanwhile(self, compute: Compute) -> dict[str, Any] | None:
        """Return the container whose name is taken; None where it is not ours.

        Docker takes the name a moment before the container is there, and tells nobody when it is filled: to fill it
        too would pull what runs from under its feet.
        """
        found = None
        for _ in range(_LOOKS):
            found = await self._look(compute)
            if found and (not self._owner.owns(found, compute) or not spec_of.never_started(found)):
                break
            await asyncio.sleep(_LOOK_SECONDS)
        return found if found and self._owner.owns(found, compute) else None

    async def start(self, spec: WorkspaceSpec, image: Mapping[str, Any]) -> dict[str, Any]:
        """Start the container and return what Docker knows of it. Raises ``ProvisionFailed``, also if it has ended."""
        from docker.errors import APIError

        container = spec_of.section(spec.template)
        try:
            await self._docker.call(lambda client: client.start(spec.compute.name))
        except APIError as e:
            raise explained(
                e,
                doing=f"starting container {spec.compute.name}",
                image=container.image,
                command=spec_of.program(container, image),
            ) from e
        found = await self.find(spec.compute)
        if found is None or not found["State"]["Running"]:
            raise await self.ended(spec.compute, found)
        return found

    async def ended(self, compute: Compute, found: Mapping[str, Any] | None) -> ProvisionFailed:
        """Return the failure of a container that ended before it was of any use, with the end of its log."""
        log = await self.log_tail(compute) if found else ""
        ending = spec_of.ending(found, log) if found else "it does not exist any more"
        return ProvisionFailed(f"The workspace ended by itself: {ending}.", source=FailureSource.EXIT, detail=log)

    async def log_tail(self, compute: Compute) -> str:
        """Return the last 8 KiB of what it wrote; empty where that cannot be read."""
        from docker.errors import APIError

        try:
            text: bytes = await self._docker.call(lambda client: client.logs(compute.name, tail=_LOG_LINES))
        except (APIError, BackendAway):  # a logging driver that cannot be read
            return ""
        return log_tail(text.decode("utf-8", "replace"))

    async def stop(self, compute: Compute, grace_seconds: int) -> None:
        """Ask it to end, and end it when the grace is over. Raises ``ResultNotSaved``: it is done to save a result."""
        from docker.errors import APIError, NotFound

        try:
            await self._docker.call(lambda client: client.stop(compute.name, timeout=grace_seconds))
        except NotFound:
            return
        except APIError as e:
            raise ResultNotSaved(f"container {compute.name} does not stop: {said(e)}") from e

    async def remove(self, compute: Compute) -> None:
        """End and remove it, with its anonymous volumes; one that is not there is fine. Raises ``NotRemoved``."""
        from docker.errors import APIError, NotFound

        try:
            await self._docker.call(lambda client: client.remove_container(compute.name, v=True, force=True))
        except NotFound:
            return
        except APIError as e:
            raise NotRemoved(
                f"container {compute.name} is not removed: {said(e)}; remove it by hand: docker rm -f -v {compute.name}"
            ) from e

    async def all(self) -> list[Compute]:
        """Return the compute of every container that carries the installation's label."""
        labels = {"label": self._owner.labels_of_installation}
        found: Any = await self._docker.call(lambda client: client.containers(all=True, filters=labels))
        computes = [spec_of.compute_of(entry["Labels"]) for entry in found]
        return [compute for compute in computes if compute]
