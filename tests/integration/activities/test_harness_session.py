"""Sessions of a harness over real HTTP: our agent starts it, the activities create one run and follow it to its end."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.testing import ActivityEnvironment

from activities import processes
from activities.harness_client import HarnessClient
from messages.activities import SessionRequest, WorkspaceHandle
from messages.errors import ErrorType
from messages.names import compute_name, host_task_queue
from messages.signals import SessionFinished
from messages.statuses import BackendKind, EventKind, FailureSource, Readiness, SessionStatus
from messages.tasks import TaskInput
from tests.integration.activities.conftest import World
from tests.support import harness_server
from tests.support.harness import HarnessDouble, start_alone
from tests.support.hosts import HOST
from tests.support.stack import Gate

pytestmark = pytest.mark.timeout(90)


class Scene:
    """One task whose workspace has a harness."""

    def __init__(self, world: World, double: HarnessDouble, task: TaskInput, handle: WorkspaceHandle) -> None:
        self.world = world
        self.double = double
        self.task = task
        self.handle = handle
        self.request = world.session(task, handle)

    async def create(self) -> SessionRequest:
        created = await self.world.run(self.world.activities.create_session, self.request)
        self.request = self.request.model_copy(update={"run_id": created.run_id})
        return self.request

    async def follow(self) -> SessionFinished:
        async with asyncio.timeout(40):
            return await self.world.run(self.world.activities.follow_session, self.request)

    async def output(self) -> str:
        return (await self.world.registry.sessions.read_output(self.task.task_id)).data.decode()

    async def note(self) -> str | None:
        view = await self.world.registry.tasks.get(self.task.task_id)
        assert view is not None
        assert view.session is not None
        return view.session.summary

    async def until(self, reached: Callable[[], Any]) -> None:
        """Return when ``reached`` says so, which is asked whenever something of the task is recorded."""
        async with asyncio.timeout(20), self.world.registry.changes.watch(self.task.task_id) as changed:
            while not await reached():
                await changed.wait()

    def kill_harness(self) -> None:
        [pid] = [
            process.pid
            for process in processes.find_marked(self.handle.name)
            if harness_server.__file__ in Path(f"/proc/{process.pid}/cmdline").read_text()
        ]
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def scene(world: World, tmp_path: Path) -> Callable[..., Any]:
    async def make(prompt: str, *faults: str, agent: dict[str, Any] | None = None, **template: Any) -> Scene:
        double = HarnessDouble(tmp_path / "harness", *faults)
        template.setdefault("heartbeat_interval", "1s")
        task = await world.submit(
            kind=BackendKind.LOCAL, prompt=prompt, repository=None, agent=double.agent(**(agent or {})), **template
        )
        _, handle = await world.provision(task)
        assert (await world.run(world.activities.probe_workspace, handle)).ready
        return Scene(world, double, task, handle)

    return make


async def test_a_run_is_created_once_and_followed_to_its_end(scene: Any) -> None:
    s = await scene("delta Hel\ndelta lo\ntool bash README\nsay Done: é")
    request = await s.create()
    assert request.run_id
    assert await s.create() == request
    end = await s.follow()
    assert (end.status, end.summary, end.exit_code) == (SessionStatus.COMPLETED, "Done: é", None)
    assert await s.output() == "Hello\n[bash] {}\nREADME\nDone: é\n"
    assert s.double.posts == [request.session_id]
    assert await s.follow() == end
    assert await s.output() == "Hello\n[bash] {}\nREADME\nDone: é\n"


async def test_a_run_that_fails_fails_the_session_with_its_words(scene: Any) -> None:
    s = await scene("say begun\nfail the model refused")
    await s.create()
    end = await s.follow()
    assert (end.status, end.error) == (SessionStatus.FAILED, "the model refused")


@pytest.mark.parametrize("store", ["a store", "no store"])
async def test_a_run_whose_answer_was_lost_is_not_run_twice(scene: Any, store: str, tmp_path: Path) -> None:
    """S27: adopted where the harness has a list of its runs; started anew, with the harness, where it has none."""
    gate = Gate(tmp_path)
    s = await scene(f"say hello\nread {gate}", "lose first answer", store)
    await s.world.fails(s.world.activities.create_session, s.request, ErrorType.WORKSPACE_UNREACHABLE, retryable=True)
    assert len(s.double.posts) == 1
    request = await s.create()
    following = asyncio.create_task(s.follow())
    gate.open()
    assert (await following).status is SessionStatus.COMPLETED
    assert set(s.double.posts) == {request.session_id}
    if store == "a store":
        assert len(s.double.posts) == 1
    else:
        # The harness that may have been at work on it is gone.
        assert len(set(s.double.servers)) == len(s.double.posts) == 2
        assert s.double.servers[0] not in {str(p.pid) for p in processes.find_marked(s.handle.name)}
    gate.close()


async def test_a_5xx_is_tried_again_and_a_4xx_is_not(scene: Any) -> None:
    """S27"""
    s = await scene("say hello", "500 first")
    error = await s.world.fails(
        s.world.activities.create_session, s.request, ErrorType.WORKSPACE_UNREACHABLE, retryable=True
    )
    assert "500 internal_error: try again" in str(error)
    await s.create()
    assert (await s.follow()).status is SessionStatus.COMPLETED
    assert len(s.double.posts) == 1


async def test_a_refused_run_is_refused_for_good(scene: Any) -> None:
    """S27"""
    s = await scene("say hello", "400")
    error = await s.world.fails(s.world.activities.create_session, s.request, ErrorType.SESSION_REFUSED)
    assert error.message == "the harness refused the run: 400 invalid_request: prompt is required"


async def test_a_stream_that_breaks_off_is_resumed_without_gap_or_repeat(scene: Any) -> None:
    """S39"""
    s = await scene("\n".join(f"say line {n}" for n in range(10)), "drop streams")
    await s.create()
    assert (await s.follow()).status is SessionStatus.COMPLETED
    assert await s.output() == "".join(f"line {n}\n" for n in range(10))


async def test_events_that_a_slow_reader_missed_are_asked_for(
    scene: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server drops what a subscriber has no room for; here the reader is held up while hundreds are made."""
    gate, done = Gate(tmp_path), Gate(tmp_path)
    s = await scene(f"say begin\nread {gate}\nflood 700 30000\nwrite {done}\nsay end")
    await s.create()
    sessions = s.world.registry.sessions
    append, held = sessions.append_output, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        if "begin" in arguments[-1]:
            gate.open()
            await done.written()  # by now the run has made them all
            held.set()
        return await append(*arguments)

    monkeypatch.setattr(sessions, "append_output", slow)
    gaps: list[str] = []
    events = HarnessClient.events

    def noted(client: HarnessClient, run_id: str, *, after: str = "") -> Any:
        gaps.extend([after] if after else [])
        return events(client, run_id, after=after)

    monkeypatch.setattr(HarnessClient, "events", noted)
    assert (await s.follow()).status is SessionStatus.COMPLETED
    assert held.is_set()
    expected = "begin\n" + "".join(f"{n}{'.' * 30_000};" for n in range(700)) + "\nend\n"
    output = b""
    while piece := (await sessions.read_output(s.task.task_id, offset=len(output))).data:
        output += piece
    assert output.decode() == expected
    assert gaps
    gate.close()
    done.close()


async def test_a_question_to_the_user_is_shown_until_it_is_answered(scene: Any) -> None:
    """``waiting_for_user`` is no status of ours: it shows as what the session says of itself, and as an event."""
    s = await scene("ask Which branch?\nsay thanks")
    await s.create()
    following = asyncio.create_task(s.follow())

    async def asked() -> bool:
        return await s.note() == "waiting_for_user: Which branch?"

    await s.until(asked)
    assert (await s.output()) == "[waiting_for_user: Which branch?]\n"
    token = s.world.keys.agent_token(s.handle.workspace_id, 1)
    answer = await asyncio.to_thread(
        httpx.post,
        f"{s.handle.harness_url}/v1/runs/{s.request.run_id}/input",
        json={"answers": {"Which branch?": "main"}},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 202
    assert (await following).status is SessionStatus.COMPLETED
    events = await s.world.registry.tasks.events(s.task.task_id)
    notes = [e.detail["note"] for e in events if e.kind is EventKind.SESSION_STATUS and "note" in e.detail]
    assert notes[0] == "waiting_for_user: Which branch?"


async def test_the_death_of_the_harness_interrupts_the_session_at_once(scene: Any) -> None:
    """S28: long before three heartbeats, because the stream breaks; with its last words."""
    s = await scene("say begun\nhang", heartbeat_interval="10m")
    await s.create()
    following = asyncio.create_task(s.follow())

    async def begun() -> bool:
        return "begun" in await s.output()

    await s.until(begun)
    s.kill_harness()
    async with asyncio.timeout(10):
        end = await following
    assert end.status is SessionStatus.INTERRUPTED
    assert end.error.startswith("the harness was killed by SIGKILL (it said last: ")


async def test_a_harness_that_was_started_anew_does_not_leave_the_session_running_for_ever(scene: Any) -> None:
    """S28: its store says that the run goes on."""
    s = await scene("say begun\nhang")
    await s.create()
    following = asyncio.create_task(s.follow())

    async def begun() -> bool:
        return "begun" in await s.output()

    await s.until(begun)
    await s.world.activities._sight.agent(s.handle).restart_harness()
    end = await following
    assert end.status is SessionStatus.INTERRUPTED
    assert end.error == "the harness was started anew and has forgotten the run"


async def test_cancelling_is_passed_on_and_the_last_words_are_kept(scene: Any) -> None:
    """S26"""
    s = await scene("say begun\nhang")
    request = await s.create()
    end = await s.world.run(s.world.activities.stop_session, request)
    assert (end.status, end.error) == (SessionStatus.CANCELLED, "cancelled")
    assert await s.output() == "begun\n"
    assert s.double.cancels == 1


async def test_a_run_of_which_only_the_conversation_is_known_is_cancelled_too(scene: Any) -> None:
    """S26: the task was cancelled before the answer came."""
    s = await scene("hang")
    request = await s.create()
    end = await s.world.run(s.world.activities.stop_session, request.model_copy(update={"run_id": ""}))
    assert end.status is SessionStatus.CANCELLED
    assert s.double.cancels == 1


async def test_a_harness_that_dies_before_its_session_fails_the_attempt_with_its_log(scene: Any) -> None:
    """S14: never as "connection refused"."""
    s = await scene("say hello")
    s.kill_harness()
    error = await s.world.fails(s.world.activities.create_session, s.request, ErrorType.PROVISION_FAILED)
    [attached] = error.details
    assert attached.source is FailureSource.PROBE
    assert error.message == "the harness was killed by SIGKILL"
    assert "listening on" in attached.detail


async def test_the_harnesss_own_token_is_sent_by_our_agent(scene: Any, world: World) -> None:
    """S37: the value is in no file of the workspace and in no command."""
    world.environ["HARNESS_TOKEN"] = "tok-e-n"
    s = await scene("say in", "needs token", agent={"token_env": "HARNESS_TOKEN"}, required_env=("HARNESS_TOKEN",))
    await s.create()
    assert (await s.follow()).summary == "in"
    folder = world.folder(s.task)
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert b"tok-e-n" not in b"".join(texts)
    for process in processes.find_marked(s.handle.name):
        assert "tok-e-n" not in " ".join(processes.command_line(process))


@asynccontextmanager
async def image(world: World, double: HarnessDouble, prompt: str, **agent: Any) -> AsyncIterator[Scene]:
    """A harness that an image has started itself; something of ours that lives stands in for the image's container."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    task = await world.submit(
        kind=BackendKind.LOCAL, prompt=prompt, repository=None, agent=double.agent(**agent), heartbeat_interval="1s"
    )
    _, ours = await world.provision(task)
    handle = WorkspaceHandle(
        workspace_id=task.workspace_id,
        attempt=1,
        backend=BackendKind.LOCAL,
        name=compute_name(task.workspace_id, 1),
        task_queue=host_task_queue(HOST),
        harness_url=f"http://127.0.0.1:{port}",
        readiness=Readiness.PROBE,
        agent=False,
    )
    assert ours.name == handle.name
    process = await start_alone(double, port)
    try:
        s = Scene(world, double, task, handle)
        s.process = process  # type: ignore[attr-defined]
        yield s
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_an_image_without_our_agent_is_followed_directly(world: World, tmp_path: Path) -> None:
    async with image(world, HarnessDouble(tmp_path / "harness"), "say hello") as s:
        assert (await world.run(world.activities.probe_workspace, s.handle)).ready
        await s.create()
        end = await s.follow()
    assert (end.status, await s.output()) == (SessionStatus.COMPLETED, "hello\n")


async def test_an_image_whose_harness_is_gone_is_lost_after_three_heartbeats(world: World, tmp_path: Path) -> None:
    """S28: its container lives, so only the silence tells."""
    gate = Gate(tmp_path)
    async with image(world, HarnessDouble(tmp_path / "harness"), f"read {gate}\ndie") as s:
        await s.create()
        gate.open()
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = await s.follow()
    gate.close()
    assert end.status is SessionStatus.INTERRUPTED
    assert "the harness has not answered for" in end.error
    assert 3 <= loop.time() - began < 12


async def test_without_our_agent_a_lost_answer_is_refused_where_the_harness_has_no_store(
    world: World, tmp_path: Path
) -> None:
    """S27: rather no run than two."""
    async with image(world, HarnessDouble(tmp_path / "harness", "no store", "lose first answer"), "hang") as s:
        await world.fails(world.activities.create_session, s.request, ErrorType.WORKSPACE_UNREACHABLE, retryable=True)
        error = await world.fails(world.activities.create_session, s.request, ErrorType.SESSION_REFUSED)
    assert "HARNESS_RUN_DB" in str(error)
    assert len(s.double.posts) == 1


async def test_a_follower_that_is_cut_off_is_followed_by_one_that_goes_on(scene: Any, tmp_path: Path) -> None:
    """S21"""
    gate = Gate(tmp_path)
    s = await scene(f"say one\nread {gate}\nsay two")
    request = await s.create()
    environment = ActivityEnvironment()
    first = asyncio.create_task(environment.run(s.world.activities.follow_session, request))

    async def one() -> bool:
        return "one" in await s.output()

    await s.until(one)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    second = asyncio.create_task(s.follow())
    gate.open()
    assert (await second).status is SessionStatus.COMPLETED
    assert await s.output() == "one\ntwo\n"
    gate.close()
