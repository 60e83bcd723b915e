"""The last look, the session and the release, as Temporal would run them."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest

from activities import processes
from activities.task_activities import ActivitySettings, TaskActivitiesImpl
from messages.activities import (
    AttemptRequest,
    FinishRequest,
)
from messages.base import Message
from messages.errors import ErrorType
from messages.keys import Keyring
from messages.names import PROVISIONING_FAILED, WORKSPACE_READY, task_workflow_id
from messages.signals import ProvisioningFailed, WorkspaceReady
from messages.statuses import (
    BackendKind,
    EventKind,
    FailureSource,
    Readiness,
    SessionStatus,
    TaskStatus,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import TaskInput, TaskOutcome
from store.records import Callback
from store.registry import Registry
from tests.integration.activities.conftest import World, completed, release, timed_out
from tests.support.callback_api import CallbackApi
from tests.support.records import session_of


async def store(world: World, task: TaskInput, signal: str, message: Message) -> None:
    """Store a callback of the task's first attempt, as while Temporal is away."""
    owner, workspace = task_workflow_id(task.task_id), task.workspace_id
    callback = Callback.of(signal, message, workflow_id=owner, workspace_id=workspace, attempt=1)
    await world.registry.callbacks.store(callback)


async def test_the_last_look_believes_a_stored_callback_first(world: World) -> None:
    """S48"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.kill_agent(task)
    failed = ProvisioningFailed(workspace_id=task.workspace_id, attempt=1, error="no key", log_tail="tail")
    await store(world, task, PROVISIONING_FAILED, failed)
    look = await world.run(world.activities.look_once_more, handle)
    assert look.failed is not None
    assert (look.failed.error, look.failed.log_tail) == ("no key", "tail")
    await store(world, task, WORKSPACE_READY, WorkspaceReady(workspace_id=task.workspace_id, attempt=1))
    look = await world.run(world.activities.look_once_more, handle)
    assert not look.ready  # the older one counts


async def test_the_last_look_finds_a_stored_ready_although_nothing_answers(world: World) -> None:
    """S48"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.kill_agent(task)
    await store(world, task, WORKSPACE_READY, WorkspaceReady(workspace_id=task.workspace_id, attempt=1))
    assert (await world.run(world.activities.look_once_more, handle)).ready


async def test_the_last_look_finds_a_healthy_workspace_ready(world: World) -> None:
    """S10"""
    task = await world.submit()
    _, handle = await world.provision(task)
    assert (await world.run(world.activities.look_once_more, handle)).ready


async def test_the_last_look_probes_in_time_while_the_registry_is_away(world: World, keys: Keyring) -> None:
    """S10, S47: the workflow gives the whole look 5 s."""
    task = await world.submit()
    _, handle = await world.provision(task)
    async with httpx.AsyncClient() as client, Registry.connect("host=127.0.0.1 port=1") as away:
        activities = TaskActivitiesImpl(
            registry=away,
            backends=world.backends,
            keys=keys,
            client=client,
            settings=ActivitySettings(host_id="here", api_url="http://127.0.0.1:1"),
            environ={},
        )
        async with asyncio.timeout(4.5):
            assert (await world.run(activities.look_once_more, handle)).ready
        await world.kill_agent(task)
        async with asyncio.timeout(4.5):
            look = await world.run(activities.look_once_more, handle)
    assert look.failed is not None


async def test_the_last_look_tells_what_it_saw(world: World, api: CallbackApi, tmp_path: Path) -> None:
    """S08, S15: booting, failed, something else on the port, an agent that is gone."""
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "begun")
    setup = (f"echo downloading; echo > {tmp_path}/begun; cat {tmp_path}/go", "false")
    task = await world.submit(readiness=Readiness.CALLBACK, setup=setup)
    _, handle = await world.provision(task)
    await asyncio.to_thread((tmp_path / "begun").read_text)
    look = await world.run(world.activities.look_once_more, handle)
    assert (look.ready, look.failed) == (False, None)
    assert "booting" in look.error
    assert look.log_tail == "downloading\n", "what it hangs in"

    look = await world.run(world.activities.look_once_more, handle.model_copy(update={"harness_url": api.url}))
    assert not look.ready
    assert look.error

    await asyncio.to_thread((tmp_path / "go").write_text, "")
    api.wait_for(lambda: any(c[0] == "provisioning-failed" and c[4] == task.workspace_id for c in api.accepted))
    look = await world.run(world.activities.look_once_more, handle)
    assert look.failed is not None
    assert look.failed.error

    await world.kill_agent(task)
    look = await world.run(world.activities.look_once_more, handle)
    assert look.failed is not None
    assert "signal 9" in look.failed.error


async def test_creating_a_session_again_adopts_it(world: World, tmp_path: Path) -> None:
    """S27: the answer was lost, or the worker's environment changed meanwhile; one session in all."""
    task = await world.submit(prompt=f"echo x >> {tmp_path}/runs; sleep 1000", required_env=("API_KEY",))
    _, handle = await world.provision(task)
    session = world.session(task, handle)
    await asyncio.gather(*[world.run(world.activities.create_session, session) for _ in range(5)])
    world.environ["API_KEY"] = "another"
    await world.run(world.activities.create_session, session)
    end = await world.run(world.activities.stop_session, session)
    assert end.status is SessionStatus.CANCELLED
    assert (tmp_path / "runs").read_text() == "x\n"
    events = await world.registry.tasks.events(task.task_id)
    assert [event.current for event in events if event.kind is EventKind.VERDICT] == ["ready"]


async def test_no_session_begins_after_another_verdict(world: World) -> None:
    """S06, S07"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.TIMED_OUT, timed_out(task).failure)
    await world.fails(world.activities.create_session, world.session(task, handle), ErrorType.ATTEMPT_SUPERSEDED)
    assert await session_of(world.registry, task.task_id) is None


async def test_an_agent_that_ended_at_its_start_fails_with_its_log_and_not_with_connection_refused(
    world: World,
) -> None:
    """S14"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.kill_agent(task)
    (world.folder(task) / "agent.log").write_text("no key in the environment\n")
    request = world.session(task, handle)
    async with asyncio.timeout(2):  # at once, long before the workspace's time is up
        error = await world.fails(world.activities.create_session, request, ErrorType.PROVISION_FAILED)
    [failure] = error.details
    assert failure.source is FailureSource.EXIT
    assert failure.detail == "no key in the environment\n"
    assert "refused" not in error.message


async def test_an_agent_that_says_it_failed_is_believed_at_once_and_its_log_kept(
    world: World, api: CallbackApi
) -> None:
    """S14: whatever signal or look took it for ready before."""
    task = await world.submit(readiness=Readiness.CALLBACK, setup=("echo no uv here >&2; false",))
    _, handle = await world.provision(task)
    failed = ("provisioning-failed", task.workspace_id)
    await asyncio.to_thread(api.wait_for, lambda: any((c[0], c[4]) == failed for c in api.accepted))
    request = world.session(task, handle)
    async with asyncio.timeout(5):
        error = await world.fails(world.activities.create_session, request, ErrorType.PROVISION_FAILED)
    assert "setup[0]" in error.message
    [failure] = error.details
    assert failure.source is FailureSource.PROBE
    assert "no uv here" in failure.detail


async def test_a_workspace_that_said_it_is_ready_and_is_not_fails_when_verifying_has_had_its_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S15: and no second try begins that time anew."""
    monkeypatch.setattr("activities.sight.VERIFY_SECONDS", 1.0)
    os.mkfifo(tmp_path / "begun")
    setup = (f"echo downloading; echo > {tmp_path}/begun; sleep 1000",)
    task = await world.submit(readiness=Readiness.CALLBACK, setup=setup)
    _, handle = await world.provision(task)
    await asyncio.to_thread((tmp_path / "begun").read_text)
    async with asyncio.timeout(5):
        error = await world.fails(
            world.activities.create_session, world.session(task, handle), ErrorType.PROVISION_FAILED
        )
    assert error.message.startswith(f"worktree workspace {task.workspace_id} never became ready: http://")
    assert "is booting: setup[0]" in error.message
    [failure] = error.details
    assert (failure.source, failure.detail) == (FailureSource.PROBE, "downloading\n")


async def test_stopping_a_session_that_never_was_or_whose_workspace_is_gone(world: World) -> None:
    """S28"""
    task = await world.submit(prompt="sleep 1000")
    _, handle = await world.provision(task)
    session = world.session(task, handle)
    end = await world.run(world.activities.stop_session, session)
    assert end.status is SessionStatus.CANCELLED
    assert end.error
    await world.run(world.activities.create_session, session)
    await world.kill_agent(task)
    end = await world.run(world.activities.stop_session, session)
    assert (end.status, end.session_id) == (SessionStatus.INTERRUPTED, session.session_id)
    assert "signal 9" in end.error


async def test_release_records_a_timed_out_attempt_and_removes_it(world: World) -> None:
    """S08, S44: what was changed is saved after a failure too."""
    task = await world.submit()
    request, _ = await world.provision(task)
    (world.folder(task) / "checkout/new.txt").write_text("new\n")
    outcome = timed_out(task)
    done = await world.run(world.activities.release_workspace, release(request, outcome))
    assert done.result is not None
    await world.run(world.activities.finish_task, FinishRequest(task=task, attempt=1, outcome=outcome))
    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    assert view.workspace is not None
    assert (view.status, view.workspace.verdict) == (TaskStatus.FAILED, Verdict.TIMED_OUT)
    assert view.workspace.status is WorkspaceStatus.REMOVED
    assert view.failure == outcome.failure
    kinds = [event.kind for event in await world.registry.tasks.events(task.task_id)]
    assert kinds.count(EventKind.WORKSPACE_PROVISION_FAILED) == 1
    assert kinds.count(EventKind.VERDICT) == 1


async def test_release_runs_again_with_the_same_answer(world: World) -> None:
    """S21"""
    task = await world.submit()
    request, _ = await world.provision(task)
    (world.folder(task) / "checkout/new.txt").write_text("new\n")
    first = await world.run(world.activities.release_workspace, release(request, completed()))
    events = len(await world.registry.tasks.events(task.task_id))
    assert await world.run(world.activities.release_workspace, release(request, completed())) == first
    assert first.result is not None
    assert len(await world.registry.tasks.events(task.task_id)) == events


async def test_release_ends_a_session_whose_end_nobody_told(world: World) -> None:
    """S28: never running for ever."""
    task = await world.submit(prompt="sleep 1000")
    request, handle = await world.provision(task)
    session = world.session(task, handle)
    await world.run(world.activities.create_session, session)
    await world.run(world.activities.release_workspace, release(request, completed(), session.session_id))
    view = await session_of(world.registry, task.task_id)
    assert view is not None
    assert view.status is SessionStatus.INTERRUPTED
    assert view.error
    assert processes.find_marked(world.compute(task).name) == []


async def test_release_of_a_task_that_has_nothing_is_fine(world: World) -> None:
    """S26: cancelled before anything was made."""
    task = await world.submit()
    request = AttemptRequest(task=task, attempt=1, preflight=await world.preflight(task))
    outcome = TaskOutcome(status=TaskStatus.CANCELLED, error="cancelled")
    assert (await world.run(world.activities.release_workspace, release(request, outcome))).result is None
    await world.run(world.activities.finish_task, FinishRequest(task=task, attempt=1, outcome=outcome))
    view = await world.registry.tasks.get(task.task_id)
    assert view is not None
    assert (view.status, view.error) == (TaskStatus.CANCELLED, "cancelled")


async def test_a_result_that_cannot_be_kept_keeps_the_workspace(world: World, tmp_path: Path) -> None:
    """S44"""
    task = await world.submit()
    request, _ = await world.provision(task)
    new = world.folder(task) / "checkout/new.txt"
    new.write_text("new\n")
    world.repository.rename(tmp_path / "moved")
    error = await world.fails(
        world.activities.release_workspace, release(request, completed()), ErrorType.RESULT_NOT_SAVED
    )
    assert str(new.parent) in error.message
    assert new.exists()
    finish = FinishRequest(task=task, attempt=1, outcome=timed_out(task), leak_suspected=error.message)
    await world.run(world.activities.finish_task, finish)
    view = await world.registry.workspaces.get(task.workspace_id)
    assert view is not None
    assert view.status is WorkspaceStatus.FAILED
    assert view.leak_suspected_at is not None


async def test_a_session_does_not_run_for_ever_where_its_release_could_not(world: World) -> None:
    """S28: its host was away for too long, and nobody could say how it ended."""
    task = await world.submit(prompt="sleep 600")
    _, handle = await world.provision(task)
    await world.run(world.activities.create_session, world.session(task, handle))
    outcome = TaskOutcome(status=TaskStatus.FAILED, error="the host is away", error_type=ErrorType.HOST_AWAY)
    finish = FinishRequest(task=task, attempt=1, outcome=outcome, leak_suspected="the host is away")
    await world.run(world.activities.finish_task, finish)
    session = await session_of(world.registry, task.task_id)
    assert session is not None
    assert (session.status, session.error) == (SessionStatus.INTERRUPTED, "the host is away")


async def test_a_local_task_keeps_its_result_as_a_bundle(world: World) -> None:
    """S44"""
    task = await world.submit(kind=BackendKind.LOCAL, repository=None)
    request, _ = await world.provision(task)
    (world.folder(task) / "checkout/new.txt").write_text("new\n")
    done = await world.run(world.activities.release_workspace, release(request, completed()))
    assert done.result is not None
    assert done.result.bundle
    bundle = await world.registry.results.bundle(task.task_id)
    assert bundle is not None
    assert bundle.startswith(b"# v2 git bundle")
