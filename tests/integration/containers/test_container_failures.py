"""Backend ``container``: every way in which it fails says what it is, is told apart from others, and leaves nothing."""

import asyncio
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from activities.backends.container import LATE_CREATE_SECONDS, ContainerBackend
from activities.backends.docker_engine import Docker
from activities.errors import (
    BackendAway,
    BackendUnusable,
    ProvisionFailed,
    ProvisionInterrupted,
)
from tests.integration.containers.conftest import Workshop
from tests.support.docker import Daemon, build_image
from tests.support.registry import Registry


async def failure(backend: ContainerBackend, spec: object) -> ProvisionFailed:
    with pytest.raises(ProvisionFailed) as failed:
        await backend.provision(spec)
    assert "\n" not in str(failed.value)
    return failed.value


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("Not/A/Name:x", "'Not/A/Name:x' is no image's name"),
        ("{registry}/missing:1", "cannot be found"),
        ("{registry}/secret:1", "run docker login {registry} as the worker's user"),
    ],
)
async def test_an_image_that_cannot_be_had(workshop: Workshop, registry: Registry, image: str, text: str) -> None:
    """S34's preparation: what is missing is known before anything is made."""
    spec = workshop.spec(image=image.format(registry=registry.address))
    failed = await failure(workshop.backend(), spec)
    assert text.format(registry=registry.address) in str(failed)
    assert not failed.retryable


async def test_a_registry_that_is_away_is_asked_again(workshop: Workshop) -> None:
    failed = await failure(workshop.backend(), workshop.spec(image="127.0.0.1:9/some:1"))
    assert isinstance(failed, ProvisionInterrupted)
    assert "image 127.0.0.1:9/some:1 cannot be pulled" in str(failed)


async def test_an_image_is_pulled_once_for_all_who_wait(workshop: Workshop, daemon: Daemon, registry: Registry) -> None:
    name = registry.offer("tool", "1")
    specs = [workshop.spec(image=name, container={"workspace_agent": "image"}) for _ in range(3)]
    backend = workshop.backend()
    told: list[str] = []

    async def tell(text: str) -> None:
        told.append(text)

    try:
        found = await asyncio.gather(*(backend._images.obtain(spec.template.container.image, tell) for spec in specs))
        assert len({entry["Id"] for entry in found}) == 1
        assert registry.manifests_served == 1
        assert told
        assert told[0].startswith(f"pulling image {name}")
    finally:
        daemon.client().remove_image(name)


@pytest.mark.parametrize(
    ("lines", "container", "text"),
    [
        ((), {"workspace_agent": "image"}, "No command specified"),
        (("USER nobody-knows",), {}, "runs as user 'nobody-knows', and has no 'nobody-knows' in its /etc/passwd"),
        ((), {"network": "not-there"}, "network not-there not found"),
    ],
    ids=["no-command", "no-user", "no-network"],
)
async def test_what_cannot_be_started(
    workshop: Workshop, daemon: Daemon, lines: tuple[str, ...], container: dict, text: str
) -> None:
    """S23: nothing is left (see the fixture), and the same id works again."""
    backend = workshop.backend()
    spec = workshop.spec(image=build_image(daemon, *lines), container=container)
    for _ in range(2):
        failed = await failure(backend, spec)
        assert text in str(failed)
        assert not failed.retryable
        assert not (await backend.inspect(spec.compute)).exists


@pytest.mark.parametrize(
    ("line", "container", "text"),
    [
        ('CMD ["/no/program"]', {"workspace_agent": "image"}, "'/no/program' (exit code 127): No such file"),
        ('CMD ["/etc/passwd"]', {"workspace_agent": "image"}, "'/etc/passwd' (exit code 126): Permission denied"),
        ("RUN rm /usr/bin/python3", {}, "'python3' (exit code 127): No such file or directory"),
    ],
    ids=["bad-command", "not-executable", "no-python"],
)
async def test_what_cannot_run_is_named(
    workshop: Workshop, daemon: Daemon, line: str, container: dict, text: str
) -> None:
    """S14: whether it ends while it is started or right after."""
    spec = workshop.spec(image=build_image(daemon, line), container=container)
    backend = workshop.backend()
    try:
        await backend.provision(spec)
        await asyncio.to_thread(daemon.client().wait, spec.compute.name)
        said = (await backend.inspect(spec.compute)).ending
    except ProvisionFailed as e:
        said = str(e)
    await backend.destroy(spec.compute)
    assert text in said


async def test_one_that_is_cancelled_leaves_nothing(workshop: Workshop) -> None:
    """S26, S43: whenever it is cancelled, what its create call made goes."""
    backend = workshop.backend()
    for delay in (0.0, 0.05, 0.2, 0.4):
        spec = workshop.spec()
        provisioning = asyncio.create_task(backend.provision(spec))
        await asyncio.wait([provisioning], timeout=delay)
        if not provisioning.done():
            provisioning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await provisioning
        else:
            await backend.destroy(spec.compute)
        assert not (await backend.inspect(spec.compute)).exists


async def test_what_a_dead_worker_had_asked_for_is_looked_for_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S43: its container appears after the destroy has found nothing."""
    monkeypatch.setattr("activities.backends.container.LATE_CREATE_SECONDS", 0.5)
    assert LATE_CREATE_SECONDS > 0.5
    backend, spec = workshop.backend(), workshop.spec()
    folder = backend._folder(spec.compute)
    folder.mkdir(parents=True)
    backend._write(folder, backend._new_record(spec))
    destroying = asyncio.create_task(backend.destroy(spec.compute))
    await asyncio.wait([destroying], timeout=0.2)
    await backend._containers.create(spec)
    await destroying
    assert not (await backend.inspect(spec.compute)).exists


async def test_with_a_daemon_that_hangs_a_task_is_refused(
    workshop: Workshop, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.backends.container.CHECK_SECONDS", 0.5)
    backend, spec = workshop.backend(), workshop.spec()
    said = r"Docker hangs at \S+docker.sock \(no answer within 0.5 s\)"
    with daemon.frozen(), pytest.raises(BackendUnusable, match=said):
        await backend.check(spec.task)
    assert await backend.check(spec.task) is None


async def test_a_daemon_that_hangs_takes_no_thread_from_other_tasks(
    workshop: Workshop, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.backends.container.CHECK_SECONDS", 0.5)

    async def with_one_thread() -> None:
        with ThreadPoolExecutor(max_workers=1) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            backend, spec = workshop.backend(), workshop.spec()
            with daemon.frozen():
                with pytest.raises(BackendUnusable, match="Docker hangs"):
                    await backend.check(spec.task)
                async with asyncio.timeout(10):
                    await asyncio.to_thread(int)  # what a task of another backend does

    # In a loop of its own: this one, with its threads, is every other test's too.
    await asyncio.to_thread(asyncio.run, with_one_thread())


def test_threads_that_connect_do_not_wait_for_each_other(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one hangs, the others would queue behind it; all go on with one client, and close what they made."""
    with closing(Docker(daemon.environ)) as docker:
        connect, together, made = docker.connect, threading.Barrier(3), []

        def connect_together(**options: Any) -> Any:
            together.wait(20)
            made.append(connect(**options))
            return made[-1]

        monkeypatch.setattr(docker, "connect", connect_together)
        with ThreadPoolExecutor() as pool:
            used = set(pool.map(lambda _: docker.call_blocking(lambda client: client), range(3)))
        assert len(made) == 3
        assert {client for client in made if client.get_adapter("http+docker://").pools.keys()} == used
        assert len(used) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
async def test_without_a_daemon_a_task_is_refused_at_once(workshop: Workshop, tmp_path: Path) -> None:
    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    backend, spec = workshop.backend(environ=environ), workshop.spec()
    with pytest.raises(
        BackendUnusable, match=r"Docker does not answer at \S+docker.sock .*start it, or set DOCKER_HOST"
    ):
        await backend.check(spec.task)
    with pytest.raises(BackendAway):  # once it was there, it is waited for
        await backend.provision(spec)
    gc.collect()
