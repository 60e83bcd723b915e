"""What is retried, and when it counts as hopeless."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

from activities.errors import (
    MAX_TRIES,
    InvalidTask,
    NotRemoved,
    NotThisHost,
    RepositoryUnreachable,
    UnknownHost,
    WorkspaceUnreachable,
    as_application_errors,
)
from messages.errors import ErrorType
from messages.file_errors import LASTING
from store.errors import MigrationError, RegistryError, RegistryUnavailable, UnknownSession


async def failing(
    error: Exception, *, attempt: int, earlier: tuple[Any, ...] = (), is_local: bool = False
) -> tuple[ApplicationError, list[Any]]:
    """Run an activity that raises ``error``; return what Temporal sees, and the heartbeat details it leaves."""

    @activity.defn
    async def fails() -> None:
        with as_application_errors():
            raise error

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(
        environment.info, attempt=attempt, heartbeat_details=earlier, is_local=is_local
    )
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


@pytest.mark.parametrize("kind", [WorkspaceUnreachable, RepositoryUnreachable, NotThisHost, ValueError])
async def test_the_first_try_of_a_short_step_is_not_one_of_its_tries(kind: type[Exception]) -> None:
    """It is a local activity, whose heartbeats nobody keeps; the activity after it has all of its tries."""
    error, beats = await failing(kind("no answer"), attempt=1, is_local=True)
    assert not error.non_retryable
    assert not error.next_retry_delay
    assert beats == []


async def test_what_is_for_another_host_is_no_error_to_be_logged() -> None:
    error, _ = await failing(NotThisHost("this is host 'a'"), attempt=1, is_local=True)
    assert error.category is ApplicationErrorCategory.BENIGN


@pytest.mark.parametrize("kind", [WorkspaceUnreachable, NotRemoved, ValueError, KeyError])
async def test_what_may_pass_is_retried_until_it_has_failed_so_often_itself(kind: type[Exception]) -> None:
    """S27"""
    details: tuple[Any, ...] = ()
    for number in range(1, MAX_TRIES + 1):
        error, beats = await failing(kind("no answer"), attempt=number, earlier=details)
        details = beats[-1]
        assert error.non_retryable is (number == MAX_TRIES)


@pytest.mark.parametrize(("kind", "seconds"), [(RepositoryUnreachable, 60), (UnknownHost, 3)])
async def test_a_repository_that_is_away_is_asked_again_for_a_minute_and_a_mistyped_host_only_a_moment(
    kind: type[RepositoryUnreachable], seconds: float
) -> None:
    """S27: with growing pauses of its own, which the workflow's policy knows nothing of."""
    details: tuple[Any, ...] = ()
    pauses: list[float] = []
    while True:
        error, beats = await failing(kind("away"), attempt=len(pauses) + 1, earlier=details)
        if error.non_retryable:
            break
        details = beats[-1]
        assert error.next_retry_delay is not None
        pauses.append(error.next_retry_delay.total_seconds())
    assert pauses == sorted(pauses)
    assert sum(pauses) == seconds


async def test_attempts_that_an_outage_took_are_not_counted() -> None:
    """S47: the hundredth attempt, but the first that failed in this way."""
    error, _ = await failing(WorkspaceUnreachable("no answer"), attempt=100)
    assert not error.non_retryable


@pytest.mark.parametrize("error", [RegistryUnavailable("no answer"), MigrationError("no schema"), OSError(28, "full")])
async def test_what_is_away_is_waited_for_however_often_it_was_asked(error: Exception) -> None:
    """S47"""
    seen, beats = await failing(error, attempt=100, earlier=(MAX_TRIES,))
    assert (seen.type, seen.non_retryable, beats) == (ErrorType.UNAVAILABLE, False, [])
    assert str(error) in seen.message


@pytest.mark.parametrize("number", sorted(LASTING))
async def test_a_folder_that_somebody_has_to_mend_is_not_tried_again(number: int, tmp_path: Path) -> None:
    path = tmp_path / "workspaces"
    path.touch()
    seen, beats = await failing(OSError(number, os.strerror(number), str(path)), attempt=1)
    assert (seen.type, seen.non_retryable, beats) == (ErrorType.BACKEND_UNUSABLE, True, [])
    assert str(path) in seen.message
    assert "TASKRUNNER_HOME" in seen.message
    local, _ = await failing(OSError(number, os.strerror(number), str(path)), attempt=1, is_local=True)
    assert not local.non_retryable  # the activity after it has the last word
    of_no_file, _ = await failing(OSError(number, os.strerror(number)), attempt=1)
    assert (of_no_file.type, of_no_file.non_retryable) == (ErrorType.UNAVAILABLE, False)


async def test_a_full_disk_is_named_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "workspaces"
    seen, _ = await failing(OSError(errno.ENOSPC, "No space left on device", str(path)), attempt=100)
    assert (seen.type, seen.non_retryable) == (ErrorType.UNAVAILABLE, False)
    assert seen.message.startswith(f"the disk of {path} is full; free some space")


@pytest.mark.parametrize("error", [RegistryError("task t is not recorded"), UnknownSession("no such session")])
async def test_what_the_registry_will_never_know_is_not_asked_again(error: Exception) -> None:
    seen, _ = await failing(error, attempt=1)
    assert (seen.type, seen.non_retryable) == (ErrorType.INTERNAL, True)
    assert str(error) in seen.message


async def test_a_defect_is_named_as_one_and_not_tried_for_hours() -> None:
    seen, _ = await failing(ValueError("not enough\nvalues"), attempt=100, earlier=(MAX_TRIES - 1,))
    assert (seen.type, seen.non_retryable) == (ErrorType.INTERNAL, True)
    assert seen.message == "internal error: ValueError: not enough values (the worker's log says more)"


async def test_the_final_record_is_tried_until_it_is_written() -> None:
    """S40: a local activity has no heartbeats that could count, and nobody else writes that record."""
    seen, beats = await failing(ValueError("oops"), attempt=100, is_local=True)
    assert (seen.type, seen.non_retryable, beats) == (ErrorType.INTERNAL, False, [])


async def test_what_is_said_in_temporals_terms_already_stays_as_it_is() -> None:
    given = ApplicationError("as it is", type=ErrorType.SESSION_REFUSED, non_retryable=True)
    assert (await failing(given, attempt=1))[0] is given
