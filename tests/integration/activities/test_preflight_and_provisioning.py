"""Preflight and provisioning, as Temporal would run them."""

import asyncio
import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.activity import ActivityCancellationDetails
from temporalio.testing import ActivityEnvironment

from activities import processes
from activities.backends.contract import Compute
from activities.task_activities import TaskActivitiesImpl
from messages.activities import (
    AttemptRequest,
    FinishRequest,
    PreflightRequest,
    TaskActivities,
    WorkspaceHandle,
)
from messages.errors import ErrorType
from messages.keys import create_keys
from messages.names import host_task_queue, task_workflow_id
from messages.statuses import (
    BackendKind,
    FailureSource,
    SessionStatus,
    TaskStatus,
    TaskStep,
    WorkspaceStatus,
)
from messages.tasks import Repository, TaskInput, TaskOutcome
from messages.tokens import verify_callback_token
from messages.views import TaskView
from tests.integration.activities.conftest import SECRET, World, completed, release
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import files_of, git
from tests.support.hosts import HOST, agents_of
from tests.support.records import session_of


def test_the_implementation_has_exactly_the_contracts_activities() -> None:
    def definitions(owner: type) -> dict[str, Any]:
        found = {
            name: activity._Definition.from_callable(getattr(owner, name)) for name in dir(owner) if name[0] != "_"
        }
        return {
            name: (definition.name, definition.arg_types, definition.ret_type)
            for name, definition in found.items()
            if definition
        }

    assert definitions(TaskActivities)
    assert definitions(TaskActivitiesImpl) == definitions(TaskActivities)


async def test_a_task_from_preflight_to_its_final_record(world: World, api: CallbackApi) -> None:
    """S44: the story of a task that changes something, with every transition recorded."""
    script = 'echo "key is ${#API_KEY} long, level $LEVEL"; echo new > new.txt; echo done'
    task = await world.submit(prompt=script, required_env=("API_KEY",), env={"LEVEL": "info"})
    request, handle = await world.provision(task)
    assert handle.task_queue == host_task_queue(HOST)
    assert world.provisioned == [world.compute(task)]
    session = world.session(task, handle)
    await world.run(world.activities.create_session, session)
    api.wait_for(lambda: any(c.kind == f"sessions/{session.session_id}/finished" for c in api.accepted))
    assert api.output(session.session_id) == f"key is {len(SECRET)} long, level info\ndone\n"

    end = await world.run(world.activities.stop_session, session)  # it has ended: this only asks how
    assert (end.status, end.exit_code, end.summary, end.error) == (SessionStatus.COMPLETED, 0, "done", "")
    done = await world.run(world.activities.release_workspace, release(request, completed(end), session.session_id))
    assert done.result.branch == f"taskrunner/{task.task_id}"
    await world.run(world.activities.finish_task, FinishRequest(task=task, attempt=1, outcome=completed(end)))

    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    assert view.status is TaskStatus.COMPLETED
    assert view.result == done.result
    assert view.session is not None
    assert view.session.status is SessionStatus.COMPLETED
    assert view.workspace is not None
    assert view.workspace.status is WorkspaceStatus.REMOVED
    assert [step.step for step in view.steps] == [
        TaskStep.PREFLIGHT,
        TaskStep.PROVISIONING,
        TaskStep.VERIFYING,
        TaskStep.CREATING_SESSION,
        TaskStep.SESSION_RUNNING,
        TaskStep.RELEASING,
    ]
    assert "new.txt" in files_of(world.repository, done.result.branch)
    patch = await world.registry.results.patch(task.task_id)
    assert patch is not None
    assert b"+new" in patch
    assert not world.folder(task).exists()


async def test_secrets_reach_the_session_and_nothing_that_stays(world: World) -> None:
    """S37"""
    task = await world.submit(prompt="cat /dev/zero | head -c 1 >/dev/null; sleep 1000", required_env=("API_KEY",))
    _, handle = await world.provision(task)
    await world.run(world.activities.create_session, world.session(task, handle))
    for path in world.folder(task).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    token = world.keys.agent_token(task.workspace_id, 1)
    [agent] = agents_of(world.compute(task))
    for process in processes.find_all(world.compute(task).name):
        line = " ".join(processes.command_line(process))
        assert SECRET not in line
        assert token not in line
    assert SECRET.encode() not in await asyncio.to_thread(Path(f"/proc/{agent}/environ").read_bytes)
    assert token.encode() not in (world.folder(task) / "config.json").read_bytes()


@pytest.mark.parametrize("value", [None, ""])
async def test_preflight_names_every_missing_variable_and_makes_nothing(world: World, value: str | None) -> None:
    """S30"""
    task = await world.submit(required_env=("API_KEY", "FIRST_KEY", "SECOND_KEY"))
    if value is not None:
        world.environ["FIRST_KEY"] = value
    error = await world.fails(world.activities.preflight_task, PreflightRequest(task=task), ErrorType.INVALID_TASK)
    assert "FIRST_KEY, SECOND_KEY" in error.message
    assert "API_KEY," not in error.message
    assert not world.home.exists()


async def test_what_was_submitted_stands_for_a_required_variable_and_goes_before_the_workers(
    world: World, api: CallbackApi
) -> None:
    """S30"""
    task = await world.submit(
        prompt='echo "$API_KEY $OWN_KEY $LEVEL"',
        required_env=("API_KEY", "OWN_KEY"),
        env={"LEVEL": "of the template"},
        submitted={"API_KEY": "mine", "OWN_KEY": "own", "LEVEL": "as submitted"},
    )
    request, handle = await world.provision(task)
    session = world.session(task, handle)
    await world.run(world.activities.create_session, session)
    api.wait_for(lambda: any(c.kind == f"sessions/{session.session_id}/finished" for c in api.accepted))
    assert api.output(session.session_id) == "mine own as submitted\n"
    await world.run(world.activities.release_workspace, release(request, completed()))
    assert await world.registry.task_env.find(task.task_id) is None
    error = await world.fails(world.activities.preflight_task, PreflightRequest(task=task), ErrorType.INVALID_TASK)
    assert "API_KEY, OWN_KEY, LEVEL" in error.message
    assert "are gone" in error.message


async def test_values_that_this_workers_keys_do_not_open_fail_at_preflight(world: World, tmp_path: Path) -> None:
    """S30, S37"""
    world.keys = create_keys(tmp_path / "other-keys.json")
    task = await world.submit(submitted={"MY_KEY": SECRET})
    error = await world.fails(world.activities.preflight_task, PreflightRequest(task=task), ErrorType.INVALID_TASK)
    assert "MY_KEY" in error.message
    assert "TASKRUNNER_KEYS_FILE" in error.message
    assert SECRET not in error.message
    assert not world.home.exists()


async def test_preflight_records_the_timeout_and_its_rule(world: World) -> None:
    """S16, S17: resolved once, by the worker, and recorded."""
    task = await world.submit(runtime_config={"provision_timeout_seconds": 1200})
    preflight = await world.preflight(task)
    assert await world.preflight(task) == preflight  # a repeat gives the same
    assert (preflight.provision_timeout_seconds, preflight.host_id) == (1200, HOST)
    assert preflight.base_commit == git(world.repository, "rev-parse", "HEAD")
    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    assert (view.provision_timeout_seconds, view.status) == (1200, TaskStatus.RUNNING)
    assert view.provision_timeout_rule == preflight.provision_timeout_rule

    world.environ["PROVISION_TIMEOUT_SECONDS"] = "77"
    assert (await world.preflight(task)).provision_timeout_seconds == 77


async def test_preflight_refuses_another_hosts_repository_and_a_backend_that_is_not_here(world: World) -> None:
    task = await world.submit()
    elsewhere = Repository(path=str(world.repository), host="host-b")
    request = PreflightRequest(task=task.model_copy(update={"repository": elsewhere}))
    error = await world.fails(world.activities.preflight_task, request, ErrorType.INVALID_TASK)
    assert "host-b" in error.message
    world.backends.pop(BackendKind.WORKTREE)
    request = PreflightRequest(task=task)
    error = await world.fails(world.activities.preflight_task, request, ErrorType.BACKEND_UNUSABLE)
    assert "local" in error.message


async def test_what_is_tried_on_another_host_than_its_own_is_left_to_that_one(world: World) -> None:
    """Of a fleet any worker may have the workflow: it records nothing of a step that is not for its host."""
    task = await world.submit()
    elsewhere = Repository(path=str(world.repository), host="host-b")
    request = PreflightRequest(task=task.model_copy(update={"repository": elsewhere}))
    await world.fails(world.activities.preflight_task, request, ErrorType.HOST_AWAY, retryable=True, is_local=True)
    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    assert view.status is TaskStatus.QUEUED
    assert await world.run(world.activities.preflight_task, PreflightRequest(task=task), is_local=True)
    _, handle = await world.provision(task)
    session = world.session(task, handle.model_copy(update={"task_queue": "taskrunner-host-host-b"}))
    await world.fails(world.activities.create_session, session, ErrorType.HOST_AWAY, retryable=True, is_local=True)
    assert await session_of(world.registry, task.task_id) is None
    await world.run(world.activities.create_session, world.session(task, handle), is_local=True)


async def test_the_callback_token_exists_before_the_compute_and_is_the_same_in_every_try(world: World) -> None:
    """S11"""
    task = await world.submit()
    request, _ = await world.provision(task)
    config = (world.folder(task) / "config.json").read_text()
    await world.backends[BackendKind.WORKTREE].destroy(world.compute(task))
    await world.run(world.activities.provision_workspace, request)

    tokens = [json.loads(text)["callback_token"] for text in (config, (world.folder(task) / "config.json").read_text())]
    claims = [verify_callback_token(world.keys, token) for token in tokens]
    assert claims[0] == claims[1]
    assert (claims[0].sub, claims[0].att, claims[0].wf) == (task.workspace_id, 1, task_workflow_id(task.task_id))


async def test_provisioning_an_attempt_that_nobody_wants_leaves_nothing(world: World) -> None:
    """S26, S43: the release came first."""
    task = await world.submit()
    request, _ = await world.provision(task)
    await world.registry.workspaces.begin_release(task.task_id, task.workspace_id)
    await world.fails(world.activities.provision_workspace, request, ErrorType.ATTEMPT_SUPERSEDED)
    assert not world.folder(task).exists()
    assert agents_of(world.compute(task)) == []


async def test_a_release_that_begins_while_the_compute_is_made_gets_it_deleted_by_its_maker(world: World) -> None:
    """S43: the row is looked at again once the compute exists."""
    task = await world.submit()
    request = AttemptRequest(task=task, attempt=1, preflight=await world.preflight(task))
    backend = world.backends[BackendKind.WORKTREE]

    class ReleasedMeanwhile(type(backend)):
        async def provision(self, spec: Any) -> WorkspaceHandle:
            handle = await super().provision(spec)
            await world.registry.workspaces.begin_release(task.task_id, task.workspace_id)
            return handle

    world.backends[BackendKind.WORKTREE] = ReleasedMeanwhile(world.home, environ=world.environ)
    await world.fails(world.activities.provision_workspace, request, ErrorType.ATTEMPT_SUPERSEDED)
    assert not world.folder(task).exists()
    assert agents_of(world.compute(task)) == []
    assert world.provisioned == []


async def test_a_late_repeat_of_provisioning_does_not_destroy_what_is_in_use(world: World) -> None:
    task = await world.submit(prompt="sleep 1000")
    request, handle = await world.provision(task)
    await world.run(world.activities.create_session, world.session(task, handle))
    assert await world.status(task) is WorkspaceStatus.ONLINE
    await world.fails(world.activities.provision_workspace, request, ErrorType.ATTEMPT_SUPERSEDED)
    assert len(agents_of(world.compute(task))) == 1


@pytest.mark.parametrize(
    ("details", "gone"),
    [
        (ActivityCancellationDetails(cancel_requested=True), True),
        (ActivityCancellationDetails(timed_out=True), False),
        (ActivityCancellationDetails(worker_shutdown=True), False),
    ],
    ids=["cancelled", "cut-off", "worker-stops"],
)
async def test_cancelled_it_destroys_and_cut_off_it_leaves_the_compute_to_its_successor(
    world: World, details: ActivityCancellationDetails, gone: bool
) -> None:
    """S26, S43"""
    task = await world.submit()
    request = AttemptRequest(task=task, attempt=1, preflight=await world.preflight(task))
    environment = ActivityEnvironment()
    reached = asyncio.Event()

    async def never_ending(_kind: BackendKind, _compute: Compute) -> None:
        reached.set()
        await asyncio.Event().wait()

    world.activities._on_provisioned = never_ending
    running = asyncio.create_task(environment.run(world.activities.provision_workspace, request))
    await reached.wait()
    environment.cancel(details)
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert world.folder(task).exists() is not gone
    assert bool(agents_of(world.compute(task))) is not gone


async def test_a_compute_that_cannot_be_made_fails_with_what_is_known(world: World) -> None:
    """S40"""
    task = await world.submit()
    preflight = (await world.preflight(task)).model_copy(update={"base_commit": "0" * 39 + "1"})
    request = AttemptRequest(task=task, attempt=1, preflight=preflight)
    error = await world.fails(world.activities.provision_workspace, request, ErrorType.PROVISION_FAILED)
    assert "000000001" in error.message
    assert [detail.source for detail in error.details] == [FailureSource.PROVIDER]


async def test_why_a_step_is_tried_again_is_known_until_the_task_has_passed_it(world: World) -> None:
    """S27"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        task = await world.submit(repository=None, url=f"http://127.0.0.1:{free.getsockname()[1]}/x.git")
        request, kind = PreflightRequest(task=task), ErrorType.REPOSITORY_UNREACHABLE
        await world.fails(world.activities.preflight_task, request, kind, retryable=True, is_local=True)
        assert (await view_of(world, task)).last_error is None  # it is tried here first, and only then in earnest
        error = await world.fails(world.activities.preflight_task, request, kind, retryable=True)
    assert (await view_of(world, task)).last_error == error.message
    assert await world.registry.tasks.advance(task.task_id, TaskStep.PROVISIONING)
    assert (await view_of(world, task)).last_error is None
    await world.registry.tasks.record_retry(task.task_id, "the host is away")
    await world.registry.tasks.finish(task.task_id, TaskOutcome(status=TaskStatus.FAILED, error="given up"))
    await world.registry.tasks.record_retry(task.task_id, "too late")
    assert (await view_of(world, task)).last_error is None


async def test_a_host_whose_disk_is_full_says_so_while_it_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S27"""
    task = await world.submit()
    request = AttemptRequest(task=task, attempt=1, preflight=await world.preflight(task))

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("activities.backends.host.write_private", full)
    error = await world.fails(world.activities.provision_workspace, request, ErrorType.UNAVAILABLE, retryable=True)
    assert error.message.startswith(f"the disk of {world.home}/records/")
    assert (await view_of(world, task)).last_error == error.message
    assert not world.folder(task).exists()


async def test_a_host_that_somebody_has_to_mend_first_says_so_at_once(world: World) -> None:
    task = await world.submit()
    request = AttemptRequest(task=task, attempt=1, preflight=await world.preflight(task))
    workspaces = world.folder(task).parent
    workspaces.parent.mkdir(exist_ok=True)
    workspaces.write_text("in the way")
    error = await world.fails(world.activities.provision_workspace, request, ErrorType.BACKEND_UNUSABLE)
    assert error.message.startswith(f"{workspaces} is not a folder; move it away")


async def view_of(world: World, task: TaskInput) -> TaskView:
    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    return view


@pytest.mark.parametrize("kind", [BackendKind.LOCAL, BackendKind.WORKTREE])
async def test_preflight_names_the_program_that_is_not_there_and_makes_nothing(world: World, kind: BackendKind) -> None:
    task = await world.submit(kind=kind, agent={"kind": "command", "command": ["no-such-agent", "{prompt}"]})
    request = PreflightRequest(task=task)
    error = await world.fails(world.activities.preflight_task, request, ErrorType.BACKEND_UNUSABLE)
    assert "'no-such-agent' is not on the PATH of host" in error.message
    assert not world.home.exists()
