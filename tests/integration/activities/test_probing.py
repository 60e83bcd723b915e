"""Probing a workspace over real HTTP: what counts as ready, and what is only a port that is open."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from messages.activities import LastLook, WorkspaceHandle
from messages.names import compute_name, host_task_queue
from messages.statuses import BackendKind, Readiness
from tests.integration.activities.conftest import World
from tests.support.hosts import HOST
from tests.support.port import Port
from tests.support.stack import Gate

pytestmark = pytest.mark.timeout(60)


class Probe:
    """A ``probe_workspace`` that runs; what its heartbeats say can be awaited."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._news = asyncio.Condition()
        self.look: asyncio.Task[LastLook] | None = None

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: any(text in error for error in self.seen))
        assert self.look is not None
        assert not self.look.done()

    async def result(self) -> LastLook:
        assert self.look is not None
        async with asyncio.timeout(20):
            return await self.look

    async def _note(self, failures: int, error: str) -> None:
        assert failures == 0
        async with self._news:
            self.seen.append(error)
            self._news.notify_all()


@asynccontextmanager
async def probing(world: World, handle: WorkspaceHandle) -> AsyncIterator[Probe]:
    probe = Probe()
    environment = ActivityEnvironment()
    tasks: set[asyncio.Task[None]] = set()
    environment.on_heartbeat = lambda *details: tasks.add(asyncio.create_task(probe._note(*details)))
    probe.look = asyncio.create_task(environment.run(world.activities.probe_workspace, handle))
    try:
        yield probe
    finally:
        probe.look.cancel()
        with suppress(asyncio.CancelledError):
            await probe.look


def image(port: int) -> WorkspaceHandle:
    """Return the handle of an image that knows nothing of us."""
    return WorkspaceHandle(
        workspace_id="w-probed",
        attempt=1,
        backend=BackendKind.LOCAL,
        name=compute_name("w-probed", 1),
        task_queue=host_task_queue(HOST),
        harness_url=f"http://127.0.0.1:{port}",
        readiness=Readiness.PROBE,
        agent=False,
    )


async def test_an_image_is_ready_when_its_application_answers_and_not_before(world: World) -> None:
    """S15: neither a container that is up, nor an open port, nor an answer that is no 200 is ready."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        number = reserved.getsockname()[1]
        async with probing(world, image(number)) as probe:
            await probe.sees("does not answer")
            reserved.close()
            server = Port(number)
            server.answers = [(503, {"status": "starting"})]
            try:
                await probe.sees("answered 503")
                server.answers = [(404, b"no such page")]
                await probe.sees("answered 404 no such page")
                server.answers = [(200, {"status": "ok"})]
                assert await probe.result() == LastLook(ready=True)
            finally:
                server.close()
    assert {(method, path, token) for method, path, token, _ in server.requests} == {("GET", "/healthz", None)}


@pytest.mark.parametrize(
    ("answer", "is_ready"),
    [
        ((200, {"status": "ok"}), True),
        ((200, {"ready": True}), True),
        ((200, b"OK"), True),
        ((200, b""), True),
        ((200, {"status": "starting"}), False),
        ((204, b""), False),
        ((302, b""), False),
        ((401, {"status": "ok"}), False),
        ((500, b"\xff"), False),
    ],
)
async def test_only_200_is_ready_unless_it_says_otherwise(world: World, answer: Any, is_ready: bool) -> None:
    """S15"""
    server = Port()
    server.answers = [answer]
    try:
        handle = image(int(server.url.rpartition(":")[2]))
        if is_ready:
            assert await world.run(world.activities.probe_workspace, handle) == LastLook(ready=True)
        else:
            async with probing(world, handle) as probe:
                await probe.sees(f"answered {answer[0]}")
    finally:
        server.close()


async def test_a_port_that_accepts_and_says_nothing_is_not_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S15"""
    monkeypatch.setattr("activities.sight.LAST_PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with probing(world, image(silent.getsockname()[1])) as probe:
            await probe.sees("did not answer within 0.2 s")


async def test_the_last_look_at_an_image_asks_its_own_health(world: World) -> None:
    """S08, S10"""
    server = Port()
    server.answers = [(503, b"warming up")]
    handle = image(int(server.url.rpartition(":")[2]))
    try:
        task = await world.submit(readiness="probe")
        _, own = await world.provision(task)  # something that lives stands behind the name
        handle = handle.model_copy(update={"workspace_id": own.workspace_id, "backend": own.backend})
        look = await world.run(world.activities.look_once_more, handle)
        assert not look.ready
        assert look.error.endswith("/healthz answered 503 warming up")
        server.answers = [(200, {"status": "ok"})]
        assert (await world.run(world.activities.look_once_more, handle)).ready
    finally:
        server.close()


async def test_our_agent_is_asked_with_its_token_and_says_how_far_it_is(world: World, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    task = await world.submit(kind=BackendKind.LOCAL, readiness="probe", setup=[f"read line < {gate}; exit 3"])
    _, handle = await world.provision(task)
    assert handle.agent
    async with probing(world, handle) as probe:
        await probe.sees("still booting: setup[0]")
        gate.open()
        look = await probe.result()
    gate.close()
    assert look.failed is not None
    assert "setup[0] exited with" in look.error
