"""What is in a workspace's container: put in before it starts, fetched when it has stopped."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO, TYPE_CHECKING, Any

from activities.backends import container_spec as spec_of
from activities.backends.container_files import (
    Owner,
    UnusableArchive,
    pack,
    read_member,
    unpack_tree,
    user_ids,
)
from activities.backends.docker_engine import Docker, Sdk, explained, said
from activities.backends.zipapp import agent_zipapp
from activities.errors import ProvisionFailed, ResultNotSaved
from activities.files import is_real_folder, remove_tree
from activities.threads import to_its_end
from messages.statuses import FailureSource
from messages.templates import WorkspaceAgent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping

    from activities.backends.contract import Compute, WorkspaceSpec
    from activities.backends.host_copies import HostCopies

_TABLE_BYTES = 1024 * 1024
_FETCH_SECONDS = 600.0
_KNOWN_IMAGES = 1000


class Contents:
    """Fills containers and empties them.

    The checkout is made on this host, where its repository is: neither git nor a way to it is needed inside.
    """

    def __init__(self, docker: Docker, home: Path, copies: HostCopies) -> None:
        self._docker = docker
        self._home = home
        self._copies = copies
        self._zipapp: Path | None = None
        # By image id, which names its content: each look into an image costs Docker a process.
        self._owners: dict[str, Owner] = {}

    @asynccontextmanager
    async def checkout(self, spec: WorkspaceSpec, parent: Path) -> AsyncGenerator[Awaitable[Path]]:
        """Make the checkout in ``parent``, while other things are done; yields what to wait for.

        It goes with the context, or with ``parent``. Raises ``ProvisionFailed`` where it is waited for.
        """
        folder = Path(mkdtemp(dir=parent, prefix=".checkout-"))
        making = asyncio.ensure_future(self._copies.make(spec, folder))
        try:
            yield making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
            await to_its_end(remove_tree, folder)

    async def put(self, spec: WorkspaceSpec, making: Awaitable[Path], api_url: str, image: Mapping[str, Any]) -> None:
        """Put the checkout that is ``making``, our agent and its configuration in. Raises ``ProvisionFailed``."""
        container = spec_of.section(spec.template)
        owner = await self._owner(spec, image)
        files: dict[str, bytes] = {}
        if spec_of.has_agent(container):
            files["config.json"] = spec_of.agent_config(spec, api_url).encode()
        if container.workspace_agent is WorkspaceAgent.MOUNT:
            files["agent.pyz"] = (await self._agent()).read_bytes()
        checkout = await making
        with TemporaryFile(dir=self._home) as archive:
            await to_its_end(pack, spec_of.FOLDER, files, checkout, owner, archive)
            archive.seek(0)
            await asyncio.gather(self._put(spec, archive), to_its_end(remove_tree, checkout))

    async def _agent(self) -> Path:
        if self._zipapp is None or not self._zipapp.exists():
            self._zipapp = await to_its_end(agent_zipapp, self._home)
        return self._zipapp

    async def fetch(self, compute: Compute, target: Path) -> bool:
        """Write what is in the checkout of a stopped container to ``target``; False where there is none any more.

        Raises ``ResultNotSaved``.
        """
        from docker.errors import APIError, NotFound

        def fetch(client: Sdk) -> None:
            chunks, _ = client.get_archive(compute.name, str(spec_of.CHECKOUT))
            unpack_tree(chunks, target)

        def work() -> None:
            self._docker.call_blocking(fetch, timeout=_FETCH_SECONDS)

        try:
            await to_its_end(work)
        except NotFound:
            return False
        except (APIError, UnusableArchive, OSError) as e:
            raise ResultNotSaved(f"the checkout of container {compute.name} cannot be fetched: {said(e)}") from e
        return is_real_folder(target)

    async def _owner(self, spec: WorkspaceSpec, image: Mapping[str, Any]) -> Owner:
        user = spec_of.user_of(image)
        if user in {"", "0", "root"}:
            return Owner(0, 0)
        if known := self._owners.get(image["Id"]):
            return known
        passwd = await self._read(spec.compute, "/etc/passwd")
        group = await self._read(spec.compute, "/etc/group") if ":" in user else ""
        try:
            owner = user_ids(user, passwd, group)
        except LookupError as e:
            raise ProvisionFailed(
                f"image {spec_of.section(spec.template).image} runs as user {user!r}, and has no {e.args[0]!r} in its "
                "/etc/passwd or /etc/group; correct the image's USER",
                source=FailureSource.PROVIDER,
            ) from e
        if len(self._owners) >= _KNOWN_IMAGES:
            self._owners.clear()
        self._owners[image["Id"]] = owner
        return owner

    async def _read(self, compute: Compute, path: str) -> str:
        from docker.errors import NotFound

        def read(client: Sdk) -> bytes:
            chunks, _ = client.get_archive(compute.name, path)
            return read_member(chunks, _TABLE_BYTES)

        try:
            return (await self._docker.call(read)).decode("utf-8", "replace")
        except NotFound:
            return ""

    async def _put(self, spec: WorkspaceSpec, archive: IO[bytes]) -> None:
        from docker.errors import APIError

        try:
            await self._docker.call(lambda client: client.put_archive(spec.compute.name, "/", archive))
        except APIError as e:
            doing = f"putting files into container {spec.compute.name}"
            raise explained(e, doing=doing, image=spec_of.section(spec.template).image) from e
