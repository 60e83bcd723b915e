"""Every activity with a heartbeat timeout beats, and hears of its cancellation."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.errors import WorkspaceUnreachable, as_application_errors
from activities.heartbeat import HeartbeatInterceptor, note


class Inner(ActivityInboundInterceptor):
    def __init__(self, beats: asyncio.Event, result: BaseException | str) -> None:
        self.beats = beats
        self.result = result

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        await self.beats.wait()
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


async def run(timeout: timedelta | None, result: BaseException | str, beats_wanted: int) -> tuple[Any, int, set[str]]:
    environment = ActivityEnvironment()
    environment.info = activity.Info(**{**vars(environment.info), "heartbeat_timeout": timeout})
    enough, beats = asyncio.Event(), 0

    def on_heartbeat(*_: Any) -> None:
        nonlocal beats
        beats += 1
        if beats >= beats_wanted:
            enough.set()

    environment.on_heartbeat = on_heartbeat
    if beats_wanted == 0:
        enough.set()

    async def execute() -> Any:
        before = asyncio.all_tasks()
        beating = HeartbeatInterceptor().intercept_activity(Inner(enough, result))
        try:
            value = await beating.execute_activity(ExecuteActivityInput(fn=execute, args=[], executor=None, headers={}))
        except ValueError as e:
            value = e
        return value, {task.get_name() for task in asyncio.all_tasks() - before}

    async with asyncio.timeout(10):
        value, left = await environment.run(execute)
    return value, beats, left


async def test_it_beats_until_the_activity_ends_and_no_longer() -> None:
    value, beats, left = await run(timedelta(seconds=0.06), "done", 4)
    assert (value, left) == ("done", set())
    assert beats >= 4


async def test_an_activitys_error_is_its_own() -> None:
    error = ValueError("mine")
    value, _, left = await run(timedelta(seconds=0.06), error, 1)
    assert value is error
    assert left == set()


async def test_without_a_heartbeat_timeout_nothing_beats() -> None:
    assert await run(None, "done", 0) == ("done", 0, set())


class Beats:
    """Hears the beats of an activity that has failed three times before."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self._news = asyncio.Condition()

    async def wait_for(self, *details: Any, times: int = 1) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self.heard.count(details) >= times)

    async def during(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` as the activity."""
        environment = ActivityEnvironment()
        environment.info = activity.Info(
            **{**vars(environment.info), "heartbeat_timeout": timedelta(seconds=0.06), "heartbeat_details": [3]}
        )
        environment.on_heartbeat = self._hear

        class Working(ActivityInboundInterceptor):
            def __init__(self) -> None: ...

            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                await work()

        async def execute() -> None:
            beating = HeartbeatInterceptor().intercept_activity(Working())
            await beating.execute_activity(ExecuteActivityInput(fn=execute, args=[], executor=None, headers={}))

        async with asyncio.timeout(10):
            await environment.run(execute)

    def _hear(self, *details: Any) -> None:
        self.heard.append(details)
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


async def test_what_an_activity_notes_stays_in_the_beats_that_follow() -> None:
    """S41: the Temporal UI shows a pending activity's last heartbeat. The count of its failures stays."""
    beats = Beats()

    async def work() -> None:
        await beats.wait_for(3)
        note("refused")
        await beats.wait_for(3, "refused", times=3)

    await beats.during(work)
    assert (3,) not in beats.heard[beats.heard.index((3, "refused")) :]


async def test_a_failure_that_was_counted_stays_counted_while_it_is_reported() -> None:
    """The registry, which is told why an activity is tried again, may take a while to answer."""
    beats = Beats()

    async def work() -> None:
        note("refused")
        with contextlib.suppress(ApplicationError), as_application_errors():
            raise WorkspaceUnreachable("no answer")
        await beats.wait_for(4, times=3)

    await beats.during(work)
    assert set(beats.heard[1:]) == {(4,)}
