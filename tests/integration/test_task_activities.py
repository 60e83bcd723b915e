"""The activities of a task, against a real registry, real agents and real repositories."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio import activity
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import processes
from activities.backends.contract import Compute
from activities.backends.host import HostBackend
from activities.task_activities import ActivitySettings, TaskActivitiesImpl
from messages.activities import (
    AttemptRequest,
    FinishRequest,
    Preflight,
    PreflightRequest,
    ReleaseRequest,
    SessionRequest,
    TaskActivities,
    WorkspaceHandle,
)
from messages.errors import ErrorType
from messages.keys import Keyring
from messages.names import PROVISIONING_FAILED, WORKSPACE_READY, host_task_queue, session_id, task_workflow_id
from messages.signals import SessionFinished
from messages.statuses import (
    BackendKind,
    EventKind,
    FailureSource,
    Readiness,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure, Repository, TaskInput, TaskOutcome
from messages.tokens import verify_callback_token
from store.registry import Registry
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import files_of, git, make_repository
from tests.support.hosts import BACKENDS, HOST, agents_of, make_task

SECRET = "a-secret-that-nobody-may-see"


class World:
    """The activities on one host, run as Temporal would run them."""

    def __init__(
        self, folder: Path, registry: Registry, keys: Keyring, client: httpx.AsyncClient, api_url: str
    ) -> None:
        self.home = folder / "home"
        self.repository = make_repository(folder / "repository")
        self.registry = registry
        self.keys = keys
        self.environ = {**os.environ, "API_KEY": SECRET}
        self.backends: dict[BackendKind, HostBackend] = {
            kind: backend(self.home, environ=self.environ, stop_grace_seconds=5) for kind, backend in BACKENDS.items()
        }
        self.provisioned: list[Compute] = []
        self.activities = TaskActivitiesImpl(
            registry=registry,
            backends=self.backends,
            keys=keys,
            client=client,
            settings=ActivitySettings(host_id=HOST, api_url=api_url),
            environ=self.environ,
            on_provisioned=self._on_provisioned,
        )

    async def _on_provisioned(self, kind: BackendKind, compute: Compute) -> None:
        assert kind in self.backends
        self.provisioned.append(compute)

    async def run(self, method: Any, request: Any) -> Any:
        return await ActivityEnvironment().run(method, request)

    async def fails(
        self, method: Any, request: Any, error_type: ErrorType, *, retryable: bool = False
    ) -> ApplicationError:
        with pytest.raises(ApplicationError) as failed:
            await self.run(method, request)
        assert failed.value.type == error_type.value, failed.value
        assert failed.value.non_retryable is not retryable
        assert str(failed.value)
        return failed.value

    async def submit(self, **options: Any) -> TaskInput:
        options.setdefault("repository", self.repository)
        task = make_task(options.pop("kind", BackendKind.WORKTREE), **options)
        await self.registry.tasks.create(task, digest="d", idempotency_key=None)
        return task

    async def preflight(self, task: TaskInput) -> Preflight:
        return await self.run(self.activities.preflight_task, PreflightRequest(task=task))

    async def provision(self, task: TaskInput, attempt: int = 1) -> tuple[AttemptRequest, WorkspaceHandle]:
        request = AttemptRequest(task=task, attempt=attempt, preflight=await self.preflight(task))
        return request, await self.run(self.activities.provision_workspace, request)

    def session(self, task: TaskInput, handle: WorkspaceHandle) -> SessionRequest:
        return SessionRequest(task=task, handle=handle, session_id=session_id(task.workspace_id, handle.attempt, 1))

    def compute(self, task: TaskInput) -> Compute:
        return Compute(workspace_id=task.workspace_id, attempt=1, task_id=task.task_id)

    def folder(self, task: TaskInput) -> Path:
        return self.home / "workspaces" / self.compute(task).name

    async def status(self, task: TaskInput) -> WorkspaceStatus | None:
        view = await self.registry.workspaces.get(task.workspace_id)
        return view.status if view else None

    async def kill_agent(self, task: TaskInput) -> None:
        process = await self.backends[task.template.backend].process_to_watch(self.compute(task))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        assert await processes.wait_for_exit(process, 10)


@pytest.fixture(scope="module")
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
async def world(tmp_path: Path, registry: Registry, keys: Keyring, api: CallbackApi) -> AsyncIterator[World]:
    async with httpx.AsyncClient() as client:
        world = World(tmp_path, registry, keys, client, api.url)
        yield world
        for backend in world.backends.values():
            for compute in await backend.list_owned():
                await backend.destroy(compute)


def release(request: AttemptRequest, outcome: TaskOutcome, session: str | None = None) -> ReleaseRequest:
    return ReleaseRequest(
        task=request.task, attempt=request.attempt, preflight=request.preflight, outcome=outcome, session_id=session
    )


def completed(session: SessionFinished | None = None) -> TaskOutcome:
    return TaskOutcome(status=TaskStatus.COMPLETED, verdict=Verdict.READY, session=session)


def timed_out(task: TaskInput) -> TaskOutcome:
    failure = ProvisionFailure(
        source=FailureSource.PROVISION_TIMEOUT,
        backend=task.template.backend,
        workspace_id=task.workspace_id,
        attempt=1,
        timeout_secs=600,
        error="never became ready",
    )
    return TaskOutcome(
        status=TaskStatus.FAILED,
        error=failure.error,
        error_type=ErrorType.PROVISION_FAILED,
        verdict=Verdict.TIMED_OUT,
        failure=failure,
    )


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
    [failure] = error.details
    assert (failure.source, failure.attempt, failure.timeout_secs) == (FailureSource.PROVIDER, 1, 600)
    assert failure.error == error.message


async def test_the_last_look_believes_a_stored_callback_first(world: World) -> None:
    """S48"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.kill_agent(task)

    async def keep(signal_name: str, payload: dict[str, Any]) -> None:
        await world.registry.callbacks.keep(
            workflow_id=task_workflow_id(task.task_id),
            signal=signal_name,
            workspace_id=task.workspace_id,
            attempt=1,
            session_id=None,
            payload=payload,
        )

    base = {"workspace_id": task.workspace_id, "attempt": 1}
    await keep(PROVISIONING_FAILED, {**base, "error": "no key", "log_tail": "tail"})
    look = await world.run(world.activities.look_once_more, handle)
    assert look.failed is not None
    assert (look.failed.error, look.failed.log_tail) == ("no key", "tail")
    await keep(WORKSPACE_READY, base)
    look = await world.run(world.activities.look_once_more, handle)
    assert not look.ready  # the older one counts


async def test_the_last_look_finds_a_stored_ready_although_nothing_answers(world: World) -> None:
    """S48"""
    task = await world.submit()
    _, handle = await world.provision(task)
    await world.kill_agent(task)
    await world.registry.callbacks.keep(
        workflow_id=task_workflow_id(task.task_id),
        signal=WORKSPACE_READY,
        workspace_id=task.workspace_id,
        attempt=1,
        session_id=None,
        payload={"workspace_id": task.workspace_id, "attempt": 1},
    )
    assert (await world.run(world.activities.look_once_more, handle)).ready


async def test_the_last_look_finds_a_healthy_workspace_ready(world: World) -> None:
    """S10"""
    task = await world.submit()
    _, handle = await world.provision(task)
    assert (await world.run(world.activities.look_once_more, handle)).ready


async def test_the_last_look_tells_what_it_saw(world: World, api: CallbackApi, tmp_path: Path) -> None:
    """S08, S15: booting, failed, something else on the port, an agent that is gone."""
    os.mkfifo(tmp_path / "go")
    task = await world.submit(readiness=Readiness.CALLBACK, setup=(f"cat {tmp_path}/go", "false"))
    _, handle = await world.provision(task)
    look = await world.run(world.activities.look_once_more, handle)
    assert (look.ready, look.failed) == (False, None)
    assert "booting" in look.error

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
    assert await world.registry.sessions.get(world.session(task, handle).session_id) is None


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
    view = await world.registry.sessions.get(session.session_id)
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
