"""Containers that end by themselves: noticed at once, with nothing that polls."""

import asyncio
import gc
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from activities.backends.container import ContainerBackend
from activities.backends.contract import Compute
from activities.container_watcher import ContainerWatcher
from messages.signals import ProvisioningFailed, WorkspaceLost
from tests.integration.containers.conftest import Workshop
from tests.support.docker import UNTIL_TOLD, Daemon, build_image, end

News = asyncio.Queue[tuple[Compute, WorkspaceLost | ProvisioningFailed]]


@asynccontextmanager
async def watching(backend: ContainerBackend) -> AsyncIterator[tuple[ContainerWatcher, News]]:
    news: News = asyncio.Queue()

    async def announce(compute: Compute, message: WorkspaceLost | ProvisioningFailed) -> None:
        await news.put((compute, message))

    async with ContainerWatcher(backend, announce) as watcher:
        yield watcher, news


def until_told(daemon: Daemon) -> str:
    return build_image(daemon, f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', UNTIL_TOLD])}")


async def test_an_end_is_announced_within_two_seconds_once(workshop: Workshop, daemon: Daemon) -> None:
    """S14"""
    backend = workshop.backend()
    spec = workshop.spec(image=until_told(daemon), container={"workspace_agent": "image"})
    async with watching(backend) as (watcher, news):
        await backend.provision(spec)
        await watcher.watch(spec.compute)
        await end(daemon, spec.compute)
        async with asyncio.timeout(2):
            compute, lost = await news.get()
        await watcher.watch(spec.compute)
        await backend.destroy(spec.compute)
    assert compute == spec.compute
    assert isinstance(lost, WorkspaceLost)
    assert lost.reason == "The workspace ended by itself: its container exited with 3."
    assert "no key found" in lost.log_tail
    assert news.empty()


async def test_our_own_ends_are_no_news(workshop: Workshop) -> None:
    backend, spec, other = workshop.backend(), workshop.spec(), workshop.spec()
    async with watching(backend) as (watcher, news):
        for one in (spec, other):
            await backend.provision(one)
            await watcher.watch(one.compute)
        await backend.save_result(spec.compute, None)
        await backend.destroy(spec.compute)
        backend.docker.call_blocking(lambda client: client.kill(other.compute.name))
        compute, lost = await news.get()
        await backend.destroy(other.compute)
    assert compute == other.compute
    assert "its container exited with 137 (killed by signal 9)" in lost.reason
    assert news.empty()


async def test_what_ended_while_nobody_watched_is_announced_at_the_start(workshop: Workshop, daemon: Daemon) -> None:
    """S21: one that was removed altogether too."""
    specs = [workshop.spec() for _ in range(2)]
    earlier = workshop.backend()
    for spec in specs:
        await earlier.provision(spec)
    daemon.client().kill(specs[0].compute.name)
    daemon.client().remove_container(specs[1].compute.name, force=True)
    backend = workshop.backend()
    async with watching(backend) as (_, news):
        async with asyncio.timeout(5):
            announced = dict([await news.get(), await news.get()])
        for spec in specs:
            await backend.destroy(spec.compute)
    assert "killed by signal 9" in announced[specs[0].compute].reason
    assert "it does not exist any more" in announced[specs[1].compute].reason


async def test_memory_that_runs_out_is_named(workshop: Workshop, daemon: Daemon) -> None:
    eater = json.dumps(["python3", "-c", "x = bytearray(10**9)"])
    spec = workshop.spec(
        image=build_image(daemon, f"ENTRYPOINT {eater}"), container={"workspace_agent": "image", "memory": "32m"}
    )
    backend = workshop.backend()
    async with watching(backend) as (watcher, news):
        await backend.provision(spec)
        await watcher.watch(spec.compute)
        _, lost = await news.get()
        await backend.destroy(spec.compute)
    assert "its container ran out of memory (limit 32 MiB, exit code 137)" in lost.reason


async def test_an_unhealthy_container_fails_with_what_its_check_said(workshop: Workshop, daemon: Daemon) -> None:
    image = build_image(
        daemon,
        "HEALTHCHECK --interval=0.3s --retries=1 --timeout=5s CMD echo the database is missing; exit 1",
        f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', UNTIL_TOLD])}",
    )
    spec = workshop.spec(image=image, container={"workspace_agent": "image"})
    backend = workshop.backend()
    async with watching(backend) as (watcher, news):
        await backend.provision(spec)
        await watcher.watch(spec.compute)
        async with asyncio.timeout(15):
            _, failed = await news.get()
        await backend.destroy(spec.compute)
    assert isinstance(failed, ProvisioningFailed)
    assert failed.error == "the image's health check says that it is unhealthy: exit code 1: the database is missing"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
@pytest.mark.parametrize("live_restore", [False, True], ids=["plain", "live-restore"])
async def test_a_daemon_that_dies_and_comes_back(workshop: Workshop, daemon: Daemon, live_restore: bool) -> None:
    """S21: its containers go on with live-restore; without, they are lost, and that is said."""
    options = ["--live-restore"] * live_restore
    daemon.stop()
    daemon.start(*options)
    backend, spec, second = workshop.backend(), workshop.spec(), workshop.spec()
    try:
        async with watching(backend) as (watcher, news):
            handle = await backend.provision(spec)
            await watcher.watch(spec.compute)
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
            await asyncio.to_thread(daemon.start, *options)
            if live_restore:
                again = await backend.provision(spec)
                assert again == handle
                assert (await backend.inspect(spec.compute)).alive
                backend.docker.call_blocking(lambda client: client.kill(spec.compute.name))
            async with asyncio.timeout(20):
                compute, lost = await news.get()
            assert compute == spec.compute
            assert isinstance(lost, WorkspaceLost)
            await backend.provision(second)  # it is as usable as before
            await backend.destroy(spec.compute)
            await backend.destroy(second.compute)
    finally:
        daemon.stop()
        daemon.start()
        gc.collect()
