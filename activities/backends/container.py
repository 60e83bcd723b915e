"""Backend ``container``: a container of a Docker daemon, here or on another machine.

Its name and labels are there with it and prove whose it is, so that what a crash left is adopted and never doubled.
Everything that goes into it or comes out of it travels over the Docker API. ``<home>/containers/<compute name>/`` holds
``lock`` (held by whoever provisions, saves or destroys), ``compute.json`` and, once its result is saved, ``fetched/``;
the container is found without it.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from activities.backends import container_spec as spec_of
from activities.backends.container_contents import Contents
from activities.backends.container_reach import Reach
from activities.backends.contract import Backend, Compute, Inspection, Report, SavedChange, WorkspaceSpec, unheard
from activities.backends.docker_containers import Containers
from activities.backends.docker_engine import Docker
from activities.backends.docker_images import Images
from activities.backends.host import ComputeRecord
from activities.backends.host_copies import HostCopies
from activities.errors import AttemptNotWanted, BackendAway, BackendUnusable, ProvisionFailed, ResultNotSaved
from activities.files import exclusive, remove_tree, write_private
from activities.threads import in_daemon_thread, no_longer_than, to_its_end, until_done
from messages.activities import WorkspaceHandle
from messages.base import Message
from messages.statuses import BackendKind, FailureSource
from messages.tasks import TaskInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 15
"""What a container gets to stop in: its agent ends its sessions and delivers what it has (for at most 5 s)."""
CHECK_SECONDS = 10.0
"""How long Docker may take to say that it is there."""
LATE_CREATE_SECONDS = 5.0
"""How long after the death of whoever asked for it a container may still appear."""


class ContainerRecord(Message):
    """What ``compute.json`` says. ``copy_of``: whose it is, and from which repository.

    ``created`` and ``started``: Docker has confirmed it. ``ending``: we are taking it down, so its end is no loss.
    """

    copy_of: ComputeRecord
    created: bool = False
    started: bool = False
    ending: bool = False

    @property
    def should_run(self) -> bool:
        """Whether its end would be news."""
        return self.started and not self.ending


class ContainerBackend(Backend):
    """Workspaces as containers.

    ``environ`` is the worker's environment: it says which daemon, and what of it programs on this host may see.
    ``public_url`` is how the rest of the world reaches the API, None where nobody said; ``open_door`` makes the API's
    callback routes listen on an address of this host and returns the port, where we are able to.
    """

    kind: ClassVar[BackendKind] = BackendKind.CONTAINER

    def __init__(
        self,
        home: Path,
        *,
        environ: Mapping[str, str],
        installation_id: str,
        host_id: str = "localhost",
        public_url: str | None = None,
        open_door: Callable[[str], Awaitable[int]] | None = None,
        stop_grace_seconds: int = STOP_GRACE_SECONDS,
    ) -> None:
        self.docker = Docker(environ)
        self._home = home.absolute()
        self._owner = spec_of.Ownership(installation_id, host_id)
        self._stop_grace_seconds = stop_grace_seconds
        self._reach = Reach(self.docker, public_url, open_door)
        self._images = Images(self.docker)
        self._containers = Containers(self.docker, self._owner)
        self._copies = HostCopies(self._home, environ=environ, host_id=host_id)
        self._contents = Contents(self.docker, self._home, self._copies)

    async def check(self, task: TaskInput) -> str | None:
        """See :meth:`Backend.check`."""

        def ask() -> None:  # for longer than anybody waits, so that a hang is always told as one
            self.docker.call_blocking(lambda client: client.ping(), timeout=2 * CHECK_SECONDS)

        try:
            # Not in the pool, and on a connection of its own: a daemon that hangs holds up nobody else's task.
            await no_longer_than(CHECK_SECONDS, in_daemon_thread(ask))
        except BackendAway as e:  # whoever submits wants to know now, not when somebody has started it
            raise BackendUnusable(str(e)) from e
        except TimeoutError as e:
            raise BackendUnusable(
                f"Docker hangs at {self.docker.address} ({e}); restart it, or set DOCKER_HOST to another"
            ) from e
        container = spec_of.section(task.template)
        self._reach.check_publish(container.publish)
        if spec_of.has_agent(container):
            await self._reach.api_url()
        return await self._copies.check_source(task)

    async def prepare_image(self, spec: WorkspaceSpec) -> dict[str, Any]:
        """Get the image that the workspace needs, before anything is stopped or made. Raises ``ProvisionFailed``."""
        return await self._images.obtain(spec_of.section(spec.template).image, spec.tell)

    async def provision(self, spec: WorkspaceSpec) -> WorkspaceHandle:
        """See :meth:`Backend.provision`."""
        folder = self._folder(spec.compute)
        async with exclusive(folder / "lock", create=True):
            record = self._read(folder)
            if record and record.ending:
                raise AttemptNotWanted(f"workspace {spec.compute.name} is being taken down")
            found = await self._containers.find(spec.compute)
            if found and found["State"]["Running"]:
                self._write(folder, self._new_record(spec).model_copy(update={"created": True, "started": True}))
                return self._handle(spec, found)
            try:
                return await self._bring_up(spec, folder, found)
            except BackendAway:
                raise  # nothing can be undone now: the next try finds what is there
            except BaseException:
                await until_done(asyncio.ensure_future(self._take_down(spec.compute, folder)))
                raise

    async def inspect(self, compute: Compute) -> Inspection:
        """See :meth:`Backend.inspect`."""
        found = await self._containers.find(compute)
        if found is None:
            return Inspection(exists=False, alive=False)
        alive, log = bool(found["State"]["Running"]), await self._containers.log_tail(compute)
        return Inspection(
            exists=True,
            alive=alive,
            exit_code=None if alive else int(found["State"]["ExitCode"]),
            log_tail=log,
            reason="" if alive else spec_of.ending(found, log),
        )

    async def is_well(self, compute: Compute) -> bool:
        """Tell whether it runs, and is not called unhealthy by its image's own health check."""
        found = await self._containers.find(compute)
        return found is not None and bool(found["State"]["Running"]) and spec_of.unhealthy(found) is None

    async def health(self, compute: Compute) -> str | None:
        """Return what the image's own health check said last where it calls the container unhealthy, else None."""
        found = await self._containers.find(compute)
        return spec_of.unhealthy(found) if found else None

    async def save_result(self, compute: Compute, base: str | None, lost: Report = unheard) -> SavedChange | None:
        """See :meth:`Backend.save_result`."""
        folder = self._folder(compute)
        async with exclusive(folder / "lock", create=True):
            found = await self._containers.find(compute)
            if found is None or spec_of.never_started(found):
                return None
            labelled = spec_of.compute_of(found["Config"]["Labels"]) or compute
            record = self._end(labelled, folder)
            try:
                await self._containers.stop(compute, self._stop_grace_seconds)
                fetched = folder / "fetched"
                if not fetched.exists() and not await self._fetch(compute, fetched):
                    return None
                return await self._copies.save(record.copy_of, fetched, base, lost)
            except ResultNotSaved as e:
                text = str(e).partition("; it is still in ")[0]
                raise ResultNotSaved(f"{text}; it is still in container {compute.name}") from e

    async def destroy(self, compute: Compute) -> None:
        """See :meth:`Backend.destroy`."""
        folder = self._folder(compute)
        async with exclusive(folder / "lock", create=True):
            record = self._read(folder)
            self._end(compute, folder)
            await self._take_down(compute, folder, late=record is not None and not record.created)

    async def list_owned(self) -> list[Compute]:
        """See :meth:`Backend.list_owned`."""
        return await self._containers.all()

    def list_running(self) -> list[Compute]:
        """Return what this host's worker has started and has not taken down; Docker is not asked."""
        records = [self._read(path) for path in sorted((self._home / "containers").glob("tr-*"))]
        return [record.copy_of.compute for record in records if record and record.should_run]

    async def agents(self) -> list[tuple[Compute, str]]:
        """Return what this host's worker runs, and where it publishes its HTTP."""
        computes = await asyncio.to_thread(self.list_running)
        found = [(compute, await self._containers.find(compute)) for compute in computes]
        urls = [(compute, spec_of.published_url(entry, self.docker.remote_host)) for compute, entry in found if entry]
        return [(compute, url) for compute, url in urls if url]

    def should_run(self, compute: Compute) -> bool:
        """Tell whether its end would be news: it was started, and we are not taking it down."""
        record = self._read(self._folder(compute))
        return record is not None and record.should_run

    @property
    def labels_to_watch(self) -> list[str]:
        """The labels of the containers whose events concern this host's worker."""
        return self._owner.labels_of_host

    async def _fetch(self, compute: Compute, fetched: Path) -> bool:
        """Have the checkout in ``fetched``, whole or not at all; False where there is none in the container.

        It stays until the destroy: a result that is saved again must be the same commit, which another copy, committed
        at another time, would not give.
        """
        scratch = Path(mkdtemp(dir=fetched.parent, prefix=".fetching-"))
        try:
            if not await self._contents.fetch(compute, scratch / "checkout"):
                return False
            await to_its_end(scratch.rename, fetched)
        finally:
            await to_its_end(remove_tree, scratch)
        return True

    def _folder(self, compute: Compute) -> Path:
        return self._home / "containers" / compute.name

    def _read(self, folder: Path) -> ContainerRecord | None:
        try:
            return ContainerRecord.model_validate_json((folder / "compute.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValidationError, UnicodeDecodeError):
            _log.warning("%s is broken: treated as missing", folder / "compute.json")
            return None

    def _write(self, folder: Path, record: ContainerRecord, **changes: bool) -> ContainerRecord:
        record = record.model_copy(update=changes)
        write_private(folder / "compute.json", record.model_dump_json(indent=2) + "\n")
        return record

    def _new_record(self, spec: WorkspaceSpec) -> ContainerRecord:
        return ContainerRecord(copy_of=self._copies.record(spec))

    def _end(self, compute: Compute, folder: Path) -> ContainerRecord:
        """Note that the container's end is none to tell anybody of."""
        record = self._read(folder)
        if record is None:
            copy_of = ComputeRecord(
                workspace_id=compute.workspace_id,
                attempt=compute.attempt,
                task_id=compute.task_id,
                backend=self.kind,
                prepared=True,
            )
            record = ContainerRecord(copy_of=copy_of, created=True)
        return self._write(folder, record, ending=True)

    async def _bring_up(self, spec: WorkspaceSpec, folder: Path, found: dict[str, Any] | None) -> WorkspaceHandle:
        if found and not spec_of.never_started(found):
            raise await self._containers.ended(spec.compute, found)
        agent = spec_of.has_agent(spec_of.section(spec.template))
        async with self._contents.checkout(spec, folder) as checkout:
            api_url = await self._reach.api_url() if agent else ""
            image = await self.prepare_image(spec)
            record = self._write(folder, self._new_record(spec))
            if found is None:
                found = await self._containers.create(spec)
            record = self._write(folder, record, created=True)
            if found and found["State"]["Running"]:
                self._write(folder, record, started=True)
                return self._handle(spec, found)
            await self._contents.put(spec, checkout, api_url, image)
        handle = self._handle(spec, await self._containers.start(spec, image))
        self._write(folder, record, started=True)
        return handle

    def _handle(self, spec: WorkspaceSpec, found: dict[str, Any]) -> WorkspaceHandle:
        url = spec_of.published_url(found, self.docker.remote_host)
        if url is None:
            raise ProvisionFailed(
                f"container {spec.compute.name} publishes no port; correct container.network or container.port",
                source=FailureSource.PROVIDER,
            )
        return spec.handle(self.kind, url, agent=not spec.template.is_bare)

    async def _take_down(self, compute: Compute, folder: Path, *, late: bool = False) -> None:
        """Remove what is there; ``late``: who asked for the container died before it was known to be there."""
        found = await self._containers.find(compute)
        if found is None and late:
            await asyncio.sleep(LATE_CREATE_SECONDS)  # nothing announces what a dead worker had asked for
            found = await self._containers.find(compute)
        if found:
            await self._containers.remove(compute)
        await to_its_end(remove_tree, folder)
