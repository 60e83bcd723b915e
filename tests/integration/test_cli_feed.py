"""Following a task whose service goes away in the middle and comes back elsewhere: no gap, no repeat."""

import asyncio

import httpx
import pytest
from temporalio import workflow
from temporalio.worker import Worker

from cli import client as client_module
from cli import feed as feed_module
from cli.client import ApiClient, Disconnected
from cli.discovery import Service
from cli.errors import Refused, Unreachable
from cli.feed import TaskFeed
from messages.errors import ErrorType
from messages.keys import Keyring
from messages.names import STATUS_QUERY, TASK_RUNNER
from messages.statuses import TaskStatus, TaskStep
from messages.tasks import TaskInput, TaskOutcome, TaskProgress
from messages.views import EventView
from store.registry import Registry
from tests.support.api import API_TOKEN, RunningApi, Workspace, eventually, serving

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

DONE = TaskOutcome(status=TaskStatus.COMPLETED)


class Follower:
    """Follows events and output of a task, at whatever address stands in ``url`` when the service is lost."""

    def __init__(self, url: str | None, task_id: str) -> None:
        self.url = url
        self.asked = asyncio.Event()
        self.events: list[EventView] = []
        self.pieces: list[tuple[int, bytes]] = []
        self.progress: list[str] = []
        self.said: list[str] = []
        self.news = asyncio.Condition()
        self._feed = TaskFeed(Service(url or "", API_TOKEN), task_id, reconnect=self._reconnect, say=self.said.append)

    async def _reconnect(self) -> Service:
        self.asked.set()
        if self.url is None:
            raise Disconnected("nothing answers")
        return Service(self.url, API_TOKEN)

    async def run(self) -> None:
        try:
            await asyncio.gather(
                self._feed.events(self.events.append, self.progress.append),
                self._feed.output(lambda offset, piece: self.pieces.append((offset, piece))),
            )
        finally:
            await self._feed.close()

    @property
    def output(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


async def _append(api: RunningApi, workspace: Workspace, offset: int, text: str) -> None:
    path = f"{api.url}/api/workspaces/{workspace.id}/sessions/{workspace.session}/output"
    answer = await api.anyone.post(path, json={"offset": offset, "chunks": [text]}, headers=workspace.headers)
    assert answer.status_code == 202


async def test_a_service_that_comes_back_elsewhere_is_found_and_goes_on_where_it_was(
    registry: Registry, temporal, keys: Keyring
) -> None:
    """S39: events and output, across two restarts, one of them while nothing answers for a while."""
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys) as first:
        workspace = await first.with_session(await first.workspace())
        task_id = workspace.task.task_id
        follower = Follower(first.url, task_id)
        following = asyncio.create_task(follower.run())
        await _append(first, workspace, 0, "one ")
        await eventually(lambda: _is(follower.output == b"one "))
        follower.url = None
    await follower.asked.wait()
    async with serving(registry, temporal, keys) as second:
        follower.url = second.url
        await _append(second, workspace, 4, "two ")
        await eventually(lambda: _is(follower.output == b"one two "))
        follower.asked.clear()
    await follower.asked.wait()
    async with serving(registry, temporal, keys) as third:
        follower.url = third.url
        await _append(third, workspace, 8, "three")
        await registry.tasks.finish(task_id, DONE)
        async with asyncio.timeout(20):
            await following
    assert follower.output == b"one two three"
    assert [offset for offset, _ in follower.pieces] == [0, 4, 8]
    kept = [event.id for event in await registry.tasks.events(task_id)]
    assert [event.id for event in follower.events] == kept


async def test_any_text_of_an_event_arrives_whole(api: RunningApi) -> None:
    """S49: Python takes more characters for the end of a line than a stream of events does."""
    error = "one\u2028two\u2029three\x85four\x0bfive\r\nsix"
    workspace = await api.workspace()
    outcome = TaskOutcome(status=TaskStatus.FAILED, error=error, error_type=ErrorType.INTERNAL)
    await api.registry.tasks.finish(workspace.task.task_id, outcome)
    follower = Follower(api.url, workspace.task.task_id)
    async with asyncio.timeout(20):
        await follower.run()
    assert error in follower.events[-1].detail.values()


class Relay:
    """A way to a service on which connections may die without a word, as behind a router that forgot them."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._alive = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    def forget(self) -> None:
        """Pass nothing on any more of the connections that there are."""
        self._alive.set()
        self._alive = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        forgotten = self._alive
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        for source, target in ((reader, back), (there, writer)):
            self._tasks.add(asyncio.create_task(self._copy(source, target, forgotten)))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, forgotten: asyncio.Event) -> None:
        while (data := await source.read(65536)) and not forgotten.is_set():
            target.write(data)
        if not forgotten.is_set():
            target.close()


async def test_a_connection_that_died_without_a_word_is_made_anew(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S39: a laptop that slept, a router that forgot: nothing tells the follower of it."""
    monkeypatch.setattr(client_module, "_QUIET_SECONDS", 0.5)
    monkeypatch.setattr(client_module, "_STREAM_TIMEOUT", httpx.Timeout(0.5))
    workspace = await api.with_session(await api.workspace())
    task_id = workspace.task.task_id
    async with Relay(api.url) as relay:
        follower = Follower(relay.url, task_id)
        following = asyncio.create_task(follower.run())
        await _append(api, workspace, 0, "one ")
        await eventually(lambda: _is(follower.output == b"one "))
        relay.forget()
        await _append(api, workspace, 4, "two")
        await api.registry.tasks.finish(task_id, DONE)
        async with asyncio.timeout(20):
            await following
    assert follower.output == b"one two"
    assert [event.id for event in follower.events] == [e.id for e in await api.registry.tasks.events(task_id)]


async def _is(condition: bool) -> bool:
    return condition


async def test_what_a_workspace_says_of_its_provisioning_is_passed_on(api: RunningApi) -> None:
    workspace = await api.workspace()
    follower = Follower(api.url, workspace.task.task_id)
    following = asyncio.create_task(follower.run())
    await api.registry.workspaces.record_progress(workspace.id, 1, "Pulling 3 of 7 layers")
    await eventually(lambda: _is(follower.progress == ["Pulling 3 of 7 layers"]))
    await api.registry.tasks.finish(workspace.task.task_id, DONE)
    async with asyncio.timeout(20):
        await following


async def test_who_never_had_an_answer_does_not_wait_for_one(api: RunningApi) -> None:
    follower = Follower("http://127.0.0.1:1", "t-1")
    with pytest.raises(Disconnected, match="no service answers"):
        await follower.run()
    assert not follower.asked.is_set()
    with pytest.raises(Refused, match="no task"):
        await Follower(api.url, "t-nobody").run()


async def test_a_service_that_stays_away_is_given_up(
    registry: Registry, temporal, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_PATIENCE_SECONDS", 0.3)
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys) as first:
        workspace = await first.workspace()
        follower = Follower(first.url, workspace.task.task_id)
        following = asyncio.create_task(follower.run())
        await eventually(lambda: _is(bool(follower.events)))
        follower.url = None
    with pytest.raises(Unreachable):
        async with asyncio.timeout(20):
            await following


async def test_each_absence_of_a_service_is_told_once(
    registry: Registry, temporal, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S39: by events and output together, and a moment, as a restart takes, is not worth a word."""
    monkeypatch.setattr(feed_module, "_UNMENTIONED_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "_LONGEST_PAUSE_SECONDS", 0.1)
    told = ["Nothing answers; waiting for it, two minutes at most"]
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys) as first:
        workspace = await first.with_session(await first.workspace())
        task_id = workspace.task.task_id
        follower = Follower(first.url, task_id)
        following = asyncio.create_task(follower.run())
        await eventually(lambda: _is(bool(follower.events)))
        follower.url = None
    await eventually(lambda: _is(follower.said == told))
    await asyncio.sleep(0.5)  # as long again, in which it must not say so twice
    async with serving(registry, temporal, keys) as second:
        follower.url = second.url
        await _append(second, workspace, 0, "one")
        await eventually(lambda: _is(follower.output == b"one"))
        assert follower.said == told
        follower.asked.clear()
    await follower.asked.wait()
    async with serving(registry, temporal, keys) as third:
        follower.url = third.url
        await _append(third, workspace, 3, "two")
        await eventually(lambda: _is(follower.output == b"onetwo"))
        follower.url = None
    await eventually(lambda: _is(follower.said == told * 2))
    async with serving(registry, temporal, keys) as fourth:
        follower.url = fourth.url
        await registry.tasks.finish(task_id, DONE)
        async with asyncio.timeout(20):
            await following
    assert follower.said == told * 2


async def test_a_task_that_tells_nothing_is_waited_for_anew_each_time(
    registry: Registry, temporal, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S39: the two minutes of an absence do not run on through what was followed well since."""
    monkeypatch.setattr(feed_module, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(feed_module, "_LONGEST_PAUSE_SECONDS", 0.1)
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys) as first:
        workspace = await first.with_session(await first.workspace())
        follower = Follower(first.url, workspace.task.task_id)
        following = asyncio.create_task(follower.run())
        await eventually(lambda: _is(bool(follower.events)))
        follower.url = None
    await follower.asked.wait()
    async with serving(registry, temporal, keys) as second:
        follower.url = second.url
        await asyncio.sleep(2)  # longer than it would wait for one that is away, which nothing announces
        assert not following.done()
        follower.asked.clear()
    await follower.asked.wait()
    async with serving(registry, temporal, keys) as third:
        follower.url = third.url
        await registry.tasks.finish(workspace.task.task_id, DONE)
        async with asyncio.timeout(20):
            await following


async def test_what_a_task_waits_for_is_asked_of_its_workflow(api: RunningApi) -> None:
    """S41: and where no worker answers for it, or it has ended, that is said."""
    workspace = await api.workspace()
    path = f"/api/tasks/{workspace.task.task_id}/progress"
    answer = await api.user.get(path)  # its queue has no worker
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:taskrunner:problem:unavailable")
    await api.registry.tasks.finish(workspace.task.task_id, DONE)
    answer = await api.user.get(path)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:taskrunner:problem:no-workflow")
    assert (await api.user.get("/api/tasks/t-nobody/progress")).status_code == 404
    async with ApiClient(Service(api.url, API_TOKEN)) as client:
        with pytest.raises(Refused, match="no workflow"):
            await client.progress(workspace.task.task_id)


@workflow.defn(name=TASK_RUNNER, sandboxed=False)
class Creating:
    """A task that is about to create its session, as its workflow sees that."""

    @workflow.run
    async def run(self, _: TaskInput) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> TaskProgress:
        return TaskProgress(
            status=TaskStatus.RUNNING,
            step=TaskStep.CREATING_SESSION,
            waiting_for="the workspace to answer",
            since=workflow.now(),
            workspace_id="w-1",
            attempt=1,
        )


async def test_what_only_the_activity_under_way_knows_is_told_as_well(api: RunningApi) -> None:
    """S41: why a step is tried again, which its workflow hears of only at the end."""
    workspace = await api.workspace()
    task, queue = workspace.task.task_id, (await workspace.workflow.describe()).task_queue
    await api.registry.tasks.advance(task, TaskStep.VERIFYING)
    await api.registry.tasks.record_retry(task, "the workspace agent does not answer")
    async with Worker(api.temporal, task_queue=queue, workflows=[Creating]):
        told = (await api.user.get(f"/api/tasks/{task}/progress")).json()
    assert (told["step"], told["last_error"]) == ("verifying", "the workspace agent does not answer")
