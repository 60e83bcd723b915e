"""A task that is submitted before what follows it is loaded."""

import asyncio
import signal
import socket

import pytest

from cli import early
from cli.client import ApiClient
from cli.discovery import Service
from cli.display import Display
from cli.errors import INTERRUPTED, UsageError
from cli.follow import Follower
from messages.statuses import BackendKind
from messages.tasks import TaskRequest
from tests.support.api import API_TOKEN, RunningApi

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

REQUEST = TaskRequest(id="t-early", prompt="true", backend=BackendKind.LOCAL)
NOWHERE = "http://127.0.0.1:1"


async def posted_to(url: str, request: TaskRequest = REQUEST) -> early.Posted:
    posted = await asyncio.to_thread(early.post, f"{url}/api/tasks", request.body(), API_TOKEN, seconds=20)
    assert posted is not None
    return posted


async def test_its_answer_is_read_later_and_the_request_not_repeated(api: RunningApi) -> None:
    posted = await posted_to(api.url)
    async with ApiClient(Service(NOWHERE, API_TOKEN)) as client:
        task = await client.submit(REQUEST, posted=posted)
    assert task.id == REQUEST.id
    assert (await api.user.get(f"/api/tasks/{task.id}")).json()["created_at"] is not None


async def test_one_whose_answer_was_lost_is_sent_again_and_is_the_same_task(api: RunningApi) -> None:
    """S20: whether the first one was taken is not known, and does not matter."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        posted = await posted_to(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.accept()[0].close()
        async with ApiClient(Service(api.url, API_TOKEN)) as client:
            tasks = [await client.submit(REQUEST, posted=posted), await client.submit(REQUEST)]
    assert tasks[0].created_at == tasks[1].created_at


async def test_what_is_refused_is_told_as_ever(api: RunningApi) -> None:
    async with ApiClient(Service(api.url, API_TOKEN)) as client:
        await client.submit(REQUEST)
        posted = await posted_to(api.url, REQUEST.model_copy(update={"prompt": "false"}))
        with pytest.raises(UsageError, match="t-early"):
            await client.submit(REQUEST, posted=posted)


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://service.example:8070", NOWHERE])
def test_where_it_cannot_be_sent_from_here_the_usual_client_does_it(url: str) -> None:
    """It has the certificates and the proxies, and the words for a service that is away."""
    assert early.post(f"{url}/api/tasks", REQUEST.body(), API_TOKEN, seconds=1) is None


async def test_an_interrupt_that_came_while_that_was_loaded_is_not_lost(
    api: RunningApi, capsys: pytest.CaptureFixture[str]
) -> None:
    """S50: the task is there by then, so whoever leaves is told how to follow it."""
    service = Service(api.url, API_TOKEN)

    async def reconnect() -> Service:
        return service

    follower = Follower(
        service,
        REQUEST,
        Display(as_json=False),
        reconnect=reconnect,
        stack_ends_with_us=lambda: False,
        as_json=False,
        persist_submission=False,
        posted=await posted_to(api.url),
        noted=[signal.SIGINT],
    )
    async with asyncio.timeout(20):
        assert await follower.run() == INTERRUPTED
    assert "taskrunner logs -f t-early" in capsys.readouterr().err
