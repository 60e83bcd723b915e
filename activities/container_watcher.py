"""Notices without polling that a workspace's container has ended or is unhealthy, and tells its owner.

Docker pushes its events over one connection that is opened with the first container. Whenever it is opened anew (Docker
was away, a worker starts), everything is listed once: what happened meanwhile is in that list.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from activities.backends.container_spec import compute_of
from activities.backends.docker_engine import reason_of
from messages.signals import ProvisioningFailed, WorkspaceLost

if TYPE_CHECKING:
    from activities.backends.container import ContainerBackend
    from activities.backends.contract import Compute
    from activities.watcher import Announce

_log = logging.getLogger(__name__)

_EVENTS = ["die", "oom", "health_status"]
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0
_OVERLAP_SECONDS = 2
"""How far back events are asked for again: what happened between asking and listening is not missed."""


class ContainerWatcher:
    """Watches this host's containers; an async context manager that watches while it is open.

    ``announce`` is called once for each end that was none of our doing, and once for each container that its image's
    health check calls unhealthy.
    """

    def __init__(self, backend: ContainerBackend, announce: Announce) -> None:
        self._backend = backend
        self._announce = announce
        self._told: set[tuple[str, type]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = threading.Event()
        self._stream: Any = None
        self._listener: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> ContainerWatcher:
        self._loop = asyncio.get_running_loop()
        if await asyncio.to_thread(self._backend.list_running):
            self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop watching; the workspaces live on."""
        self._closed.set()
        if self._stream is not None:
            with contextlib.suppress(Exception):  # it may be closing by itself
                await asyncio.to_thread(self._stream.close)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._backend.docker.close)

    async def watch(self, compute: Compute) -> None:
        """Watch one compute from now on; an end that has come already is announced at once. Again is fine."""
        self._listen()
        self._look(compute)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = threading.Thread(target=self._follow, name="docker events", daemon=True)
            self._listener.start()

    def _follow(self) -> None:
        """Follow the events for as long as the watcher is open. Runs in a thread of its own."""
        pause, trouble = _FIRST_PAUSE_SECONDS, ""
        while not self._closed.is_set():
            try:
                with contextlib.closing(self._backend.docker.connect(timeout=None)) as client:
                    now = datetime.fromisoformat(client.info()["SystemTime"])
                    self._stream = client.events(
                        since=int(now.timestamp()) - _OVERLAP_SECONDS,
                        filters={"type": "container", "event": _EVENTS, "label": self._backend.labels_to_watch},
                        decode=True,
                    )
                    if self._closed.is_set():
                        return
                    self._in_loop(self._look_at_all)
                    if trouble:
                        _log.info("Docker answers again")
                    pause, trouble = _FIRST_PAUSE_SECONDS, ""
                    for event in self._stream:
                        if compute := compute_of(event["Actor"]["Attributes"]):
                            self._in_loop(self._look, compute)
                error = "it closed the connection"
            except Exception as e:  # whatever it is, Docker's events are followed again when it is back
                error = reason_of(e)
            if not self._closed.is_set() and not trouble:
                _log.warning("Docker's events cannot be followed (%s); trying until it is back", error)
                trouble = error
            self._closed.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _in_loop(self, function: Any, *args: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(function, *args)

    def _look_at_all(self) -> None:
        async def look() -> None:
            for compute in await asyncio.to_thread(self._backend.list_running):
                self._look(compute)

        self._start(look(), "look at all containers")

    def _look(self, compute: Compute) -> None:
        if not self._closed.is_set():
            self._start(self._tell(compute), f"look at {compute.name}")

    def _start(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # Docker has gone away in between: when it is back, all are looked at again.
            _log.warning("%s: %s", task.get_name(), error)

    async def _tell(self, compute: Compute) -> None:
        if not self._backend.should_run(compute):
            self._told -= {(compute.name, kind) for kind in (WorkspaceLost, ProvisioningFailed)}
            return
        if await self._backend.is_well(compute):
            return
        found = await self._backend.inspect(compute)
        sick = await self._backend.health(compute) if found.alive else None
        news: WorkspaceLost | ProvisioningFailed
        if not found.alive:
            news = WorkspaceLost(
                workspace_id=compute.workspace_id,
                attempt=compute.attempt,
                reason=f"The workspace ended by itself: {found.ending}.",
                log_tail=found.log_tail,
            )
        elif sick is not None:
            news = ProvisioningFailed(
                workspace_id=compute.workspace_id,
                attempt=compute.attempt,
                error=f"the image's health check says that it is unhealthy: {sick}",
                log_tail=found.log_tail,
            )
        else:
            return
        told = (compute.name, type(news))
        if not self._backend.should_run(compute) or told in self._told:
            return
        self._told.add(told)
        try:
            await self._announce(compute, news)
        except Exception:
            _log.exception("the end of workspace %s could not be announced", compute.name)
