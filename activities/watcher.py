"""Notices without polling that a workspace on this host has ended, and tells its owner.

The kernel makes a process's pidfd readable when it ends; the event loop waits for that. What ended while no worker was
there is found at the start, from what the backends list.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.backends.contract import Compute, Inspection
from activities.processes import ProcessId, open_pidfd
from messages.names import PROVISIONING_FAILED, WORKSPACE_LOST, task_workflow_id
from messages.signals import ProvisioningFailed, WorkspaceLost
from messages.statuses import BackendKind
from store.errors import RegistryUnavailable
from store.registry import Registry

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0

Announce = Callable[[Compute, WorkspaceLost | ProvisioningFailed], Awaitable[None]]
"""Tells a workspace's owner of its end, or that it will never be ready."""


class WatchedBackend(Protocol):
    """What a backend offers whose computes are processes of this host."""

    async def inspect(self, compute: Compute) -> Inspection:
        """Look at the compute."""
        ...

    async def list_owned(self) -> list[Compute]:
        """Return every compute of this installation."""
        ...

    async def process_to_watch(self, compute: Compute) -> ProcessId | None:
        """Return the agent's process, dead or alive; None where there is nothing to watch."""
        ...


class ProcessWatcher:
    """Watches the agents of this host's workspaces; an async context manager that watches while it is open.

    ``announce`` is called once for each end that was none of our doing. What it raises is logged.
    """

    def __init__(self, backends: Mapping[BackendKind, WatchedBackend], announce: Announce) -> None:
        self._backends = dict(backends)
        self._announce = announce
        self._watched: dict[str, tuple[ProcessId, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "ProcessWatcher":
        """Begin with what is there, dead or alive."""
        for kind, backend in self._backends.items():
            for compute in await backend.list_owned():
                await self.watch(kind, compute)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop watching; the workspaces live on."""
        for name in list(self._watched):
            self._forget(name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def watch(self, kind: BackendKind, compute: Compute) -> None:
        """Watch one compute from now on; an end that has come already is announced at once. Again is fine."""
        process = await self._backends[kind].process_to_watch(compute)
        if process is None:
            return
        if compute.name in self._watched:
            if self._watched[compute.name][0] == process:
                return
            self._forget(compute.name)
        fd = open_pidfd(process)
        if fd is None:
            self._ended(kind, compute)
            return
        self._watched[compute.name] = (process, fd)
        asyncio.get_running_loop().add_reader(fd, self._readable, kind, compute)

    def _readable(self, kind: BackendKind, compute: Compute) -> None:
        self._forget(compute.name)
        self._ended(kind, compute)

    def _forget(self, name: str) -> None:
        _, fd = self._watched.pop(name)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)

    def _ended(self, kind: BackendKind, compute: Compute) -> None:
        task = asyncio.create_task(self._tell(kind, compute), name=f"workspace-lost-{compute.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, kind: BackendKind, compute: Compute) -> None:
        backend = self._backends[kind]
        try:
            if await backend.process_to_watch(compute) is None:
                return  # we are taking it down ourselves, or have done so
            found = await backend.inspect(compute)
            if found.alive:  # it was started again in the meantime
                await self.watch(kind, compute)
                return
            lost = WorkspaceLost(
                workspace_id=compute.workspace_id,
                attempt=compute.attempt,
                reason=f"The workspace ended by itself: {found.ending}.",
                log_tail=found.log_tail,
            )
            await self._announce(compute, lost)
        except Exception:
            _log.exception("the end of workspace %s could not be announced", compute.name)


def signal_owner(client: Client, registry: Registry) -> Announce:
    """Return an ``announce`` that signals the workflow that owns the workspace.

    While Temporal is away it is tried again, 1 s doubling to 30 s, for as long as the watcher is open.
    """

    async def owner_of(compute: Compute) -> str:
        with contextlib.suppress(RegistryUnavailable):
            state = await registry.workspaces.attempt_state(compute.workspace_id)
            if state:
                return state.owner_workflow_id
        return task_workflow_id(compute.task_id)

    async def announce(compute: Compute, news: WorkspaceLost | ProvisioningFailed) -> None:
        signal = WORKSPACE_LOST if isinstance(news, WorkspaceLost) else PROVISIONING_FAILED
        pause = _FIRST_PAUSE_SECONDS
        while True:
            owner = await owner_of(compute)
            try:
                await client.get_workflow_handle(owner).signal(signal, news)
                return
            except (RPCError, RuntimeError, OSError) as e:  # a lazy client that cannot connect raises RuntimeError
                if isinstance(e, RPCError) and e.status is RPCStatusCode.NOT_FOUND:
                    _log.warning("workspace %s has ended and nobody owns it (%s has closed)", compute.name, owner)
                    return
                _log.warning("the end of workspace %s is told to %s in %g s: %s", compute.name, owner, pause, e)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    return announce
