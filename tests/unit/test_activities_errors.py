"""What is retried, and when it counts as hopeless."""

import dataclasses
from typing import Any

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.errors import MAX_TRIES, InvalidTask, NotRemoved, WorkspaceUnreachable, as_application_errors
from messages.errors import ErrorType


async def failing(
    error: Exception, *, attempt: int, earlier: tuple[Any, ...] = ()
) -> tuple[ApplicationError, list[Any]]:
    """Run an activity that raises ``error``; return what Temporal sees, and the heartbeat details it leaves."""

    @activity.defn
    async def fails() -> None:
        with as_application_errors():
            raise error

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=attempt, heartbeat_details=earlier)
    beats: list[Any] = []
    environment.on_heartbeat = lambda *details: beats.append(details)
    with pytest.raises(ApplicationError) as raised:
        await environment.run(fails)
    return raised.value, beats


async def test_what_can_never_work_is_not_retried() -> None:
    """S25"""
    error, _ = await failing(InvalidTask("no such ref"), attempt=1)
    assert error.non_retryable
    assert error.type == ErrorType.INVALID_TASK


@pytest.mark.parametrize("kind", [WorkspaceUnreachable, NotRemoved])
async def test_what_may_pass_is_retried_until_it_has_failed_so_often_itself(kind: type[Exception]) -> None:
    """S27"""
    details: tuple[Any, ...] = ()
    for number in range(1, MAX_TRIES + 1):
        error, beats = await failing(kind("no answer"), attempt=number, earlier=details)
        details = beats[-1]
        assert error.non_retryable is (number == MAX_TRIES)


async def test_attempts_that_an_outage_took_are_not_counted() -> None:
    """S47: the hundredth attempt, but the first that failed in this way."""
    error, _ = await failing(WorkspaceUnreachable("no answer"), attempt=100)
    assert not error.non_retryable
