"""The activities of a task, as ``messages.activities`` promises them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx
from pydantic import ValidationError
from temporalio import activity

from activities.backends.contract import Backend, Backends, Compute, WorkspaceSpec
from activities.endings import ended, gone
from activities.errors import (
    AttemptNotWanted,
    InvalidTask,
    NotThisHost,
    SessionRefused,
    WorkspaceUnreachable,
    as_application_errors,
)
from activities.harness_session import Follower, create_run, stop_run
from activities.heartbeat import until_worker_stops
from activities.reports import WorkspaceReports, retries_told
from activities.sight import Sight
from activities.threads import until_done
from messages.activities import (
    AttemptRequest,
    FinishRequest,
    LastLook,
    Preflight,
    PreflightRequest,
    Release,
    ReleaseRequest,
    SessionCreated,
    SessionRequest,
    TaskActivities,
    WorkspaceHandle,
)
from messages.keys import Keyring
from messages.names import PROVISIONING_FAILED, WORKSPACE_READY, host_task_queue, session_id, task_workflow_id
from messages.sealed import CannotOpen, open_env
from messages.signals import ProvisioningFailed, SessionFinished
from messages.statuses import BackendKind, SessionStatus, TaskStep, Verdict, WorkspaceStatus
from messages.tasks import SavedResult, TaskInput, TaskOutcome
from messages.templates import HarnessAgent, how_to_install
from messages.timeouts import resolve_provision_timeout
from messages.tokens import mint_callback_token
from store.errors import AttemptSuperseded, RegistryUnavailable
from store.registry import Registry

LAST_READ_SECONDS = 1.0
"""How long the last look waits for the registry."""
LAST_LOOK_SECONDS = 4.0
"""How long the last look takes in all: the workflow gives it 5 s, its way through Temporal included."""
SESSION_GRACE_SECONDS = 10.0
DELIVERY_SECONDS = 10.0
"""How long the end of a stopped session waits for its output to reach the API."""

_IN_USE = frozenset({WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED, WorkspaceStatus.RESTARTING})


@dataclass(frozen=True)
class ActivitySettings:
    """This worker's host, and how workspaces reach the API."""

    host_id: str
    api_url: str


class TaskActivitiesImpl(TaskActivities):
    """What a TaskRunner asks of the world, on one host.

    ``environ`` is the worker's environment: ``required_env`` and the provision timeout are read from it when they are
    needed. ``on_provisioned`` is told of every compute that was brought up, so that its end can be noticed.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        backends: Mapping[BackendKind, Backend],
        keys: Keyring,
        client: httpx.AsyncClient,
        settings: ActivitySettings,
        environ: Mapping[str, str],
        on_provisioned: Callable[[BackendKind, Compute], Awaitable[None]] | None = None,
    ) -> None:
        self._registry = registry
        self._backends = Backends(backends)
        self._keys = keys
        self._sight = Sight(self._backends, keys, client)
        self._settings = settings
        self._environ = environ
        self._on_provisioned = on_provisioned

    @activity.defn
    async def preflight_task(self, request: PreflightRequest) -> Preflight:
        """See :meth:`TaskActivities.preflight_task`."""
        task = request.task
        async with retries_told(self._registry.tasks, task.task_id):
            host_id = self._settings.host_id
            repository = task.repository
            if activity.info().is_local and repository and repository.host:
                self._require_host(repository.host)
            await self._registry.tasks.begin(task.task_id)
            await self._session_env(task)
            if repository and repository.host not in {None, host_id}:
                raise InvalidTask(
                    f"the repository is on host {repository.host!r} and this is {host_id!r}; start a worker there"
                )
            base_commit = await self._backends.of(task.template.backend).check(task)
            timeout = resolve_provision_timeout(task.template, self._environ)
            preflight = Preflight(
                host_id=host_id,
                task_queue=host_task_queue(host_id),
                provision_timeout_seconds=timeout.seconds,
                provision_timeout_rule=timeout.rule,
                base_commit=base_commit,
            )
            await self._registry.tasks.record_preflight(task.task_id, preflight)
            return preflight

    @activity.defn
    async def provision_workspace(self, request: AttemptRequest) -> WorkspaceHandle:
        """See :meth:`TaskActivities.provision_workspace`."""
        task, attempt = request.task, request.attempt
        async with retries_told(self._registry.tasks, task.task_id):
            backend = self._backends.of(task.template.backend)
            compute = _compute(task, attempt)
            workflow_id = task_workflow_id(task.task_id)
            try:
                created_at = await self._registry.workspaces.begin_attempt(
                    task, attempt, host_id=self._settings.host_id, workflow_id=workflow_id
                )
            except AttemptSuperseded:
                await self._destroy_unless_in_use(backend, compute)
                raise
            reports = WorkspaceReports(self._registry.workspaces, task.workspace_id, attempt)
            spec = WorkspaceSpec(
                compute=compute,
                template=task.template,
                task=task,
                base_commit=request.preflight.base_commit,
                task_queue=request.preflight.task_queue,
                api_url=self._settings.api_url,
                callback_token=mint_callback_token(
                    self._keys,
                    workspace_id=task.workspace_id,
                    attempt=attempt,
                    workflow_id=workflow_id,
                    issued_at=created_at,
                ),
                agent_token_sha256=self._keys.agent_token_sha256(task.workspace_id, attempt),
                tell=reports.tell,
                warn=reports.warn,
                harness_env=await self._session_env(task) if isinstance(task.template.agent, HarnessAgent) else {},
            )
            try:
                handle = await backend.provision(spec)
                if not await self._registry.workspaces.is_wanted(task.workspace_id, attempt):
                    await self._destroy_unless_in_use(backend, compute)
                    raise AttemptNotWanted(f"attempt {attempt} of workspace {task.workspace_id} is no longer wanted")
                await self._registry.workspaces.record_provisioned(handle)
                if self._on_provisioned:
                    await self._on_provisioned(backend.kind, compute)
                return handle
            except asyncio.CancelledError:
                # Cut off (heartbeats lost, worker stopping), a successor adopts what is there. Cancelled, nobody would.
                if (details := activity.cancellation_details()) and details.cancel_requested:
                    await until_done(asyncio.ensure_future(backend.destroy(compute)))
                raise

    @activity.defn
    async def probe_workspace(self, handle: WorkspaceHandle) -> LastLook:
        """See :meth:`TaskActivities.probe_workspace`."""
        with as_application_errors():
            return await until_worker_stops(self._sight.probe_until_ready(handle))

    @activity.defn
    async def look_once_more(self, handle: WorkspaceHandle) -> LastLook:
        """See :meth:`TaskActivities.look_once_more`."""
        with as_application_errors():
            away: RegistryUnavailable | TimeoutError | None = None
            until = asyncio.get_running_loop().time() + LAST_LOOK_SECONDS
            try:
                async with asyncio.timeout(LAST_READ_SECONDS):
                    if (stored := await self._stored_verdict(handle)) is not None:
                        return stored
            except (RegistryUnavailable, TimeoutError) as e:
                away = e
            look = await self._sight.probe(handle, until)
            if away and not look.ready and look.failed is None:
                error = f"{look.error} (and the registry could not be asked for a stored callback)"
                return look.model_copy(update={"error": error})
            return look

    @activity.defn
    async def create_session(self, request: SessionRequest) -> SessionCreated | None:
        """See :meth:`TaskActivities.create_session`."""
        task, handle = request.task, request.handle
        async with retries_told(self._registry.tasks, task.task_id):
            if activity.info().is_local:
                self._require_host(handle.task_queue)
            workspaces = self._registry.workspaces
            if not await workspaces.record_verdict(handle.workspace_id, handle.attempt, Verdict.READY):
                state = await workspaces.attempt_state(handle.workspace_id)
                if state is None or (state.attempt, state.verdict) != (handle.attempt, Verdict.READY):
                    raise AttemptNotWanted(
                        f"attempt {handle.attempt} of workspace {handle.workspace_id} has another verdict than ready"
                    )
            await self._registry.tasks.advance(task.task_id, TaskStep.VERIFYING)
            env = await self._session_env(task)
            created = SessionCreated()
            try:
                await self._sight.verify(handle, task, env)
                is_first = await self._registry.sessions.record_starting(
                    request.session_id,
                    task_id=task.task_id,
                    workspace_id=handle.workspace_id,
                    attempt=handle.attempt,
                    turn=request.turn,
                )
                if isinstance(task.template.agent, HarnessAgent):
                    run_id = await create_run(
                        self._sight.harness(handle, task, env),
                        task.prompt,
                        request.session_id,
                        is_repeat=not is_first,
                        restart=lambda: self._restart_harness(handle),
                    )
                    created = SessionCreated(run_id=run_id)
                else:
                    argv = task.template.agent.argv(task.prompt)
                    missing = self._if_missing(task, argv[0])
                    await self._sight.agent(handle).create_session(request.session_id, argv, env, if_missing=missing)
            except WorkspaceUnreachable as e:
                if (loss := await self._sight.loss(handle)) is None:
                    raise
                raise gone(loss) from e
            await self._registry.sessions.record_running(request.session_id)
            return created

    @activity.defn
    async def follow_session(self, request: SessionRequest) -> SessionFinished:
        """See :meth:`TaskActivities.follow_session`."""
        handle = request.handle

        async def find_loss() -> str | None:
            loss = await self._sight.loss(handle)
            return loss and loss.sentence

        with as_application_errors():
            harness = self._sight.harness(handle, request.task, await self._session_env(request.task))
            follower = Follower(harness, request, self._registry.sessions, find_loss)
            return await until_worker_stops(follower.follow())

    @activity.defn
    async def stop_session(self, request: SessionRequest) -> SessionFinished:
        """See :meth:`TaskActivities.stop_session`."""
        handle, task = request.handle, request.task
        with as_application_errors():
            agent = self._sight.agent(handle)
            try:
                if isinstance(task.template.agent, HarnessAgent):
                    harness = self._sight.harness(handle, task, await self._session_env(task))
                    end = await stop_run(harness, request, self._registry.sessions, SESSION_GRACE_SECONDS)
                    return end or ended(request, SessionStatus.CANCELLED, "No run of the session is known.")
                session = await agent.cancel_session(request.session_id, grace_seconds=SESSION_GRACE_SECONDS)
                if session and not session.delivered:
                    session = await agent.session(request.session_id, wait_seconds=DELIVERY_SECONDS) or session
            except WorkspaceUnreachable:
                if (loss := await self._sight.loss(handle)) is None:
                    raise
                return ended(request, SessionStatus.INTERRUPTED, f"The workspace ended by itself: {loss.ending}.")
            if session is None:
                return ended(request, SessionStatus.CANCELLED, "The session was never started.")
            if not session.status.is_final:
                raise WorkspaceUnreachable(f"session {request.session_id} does not end")
            return session.finished(handle.workspace_id, handle.attempt)

    @activity.defn
    async def release_workspace(self, request: ReleaseRequest) -> Release:
        """See :meth:`TaskActivities.release_workspace`."""
        task, outcome = request.task, request.outcome
        async with retries_told(self._registry.tasks, task.task_id):
            workspaces = self._registry.workspaces
            if outcome.verdict and outcome.verdict is not Verdict.READY:
                await workspaces.record_verdict(task.workspace_id, request.attempt, outcome.verdict, outcome.failure)
            await self._finish_session(task, request.attempt, outcome)
            await workspaces.begin_release(task.task_id, task.workspace_id)
            backend = self._backends.of(task.template.backend)
            compute = _compute(task, request.attempt)
            result = await self._save(backend, compute, request)
            await backend.destroy(compute)
            await workspaces.record_removed(task.workspace_id)
            return Release(result=result)

    @activity.defn
    async def finish_task(self, request: FinishRequest) -> None:
        """See :meth:`TaskActivities.finish_task`."""
        task, outcome = request.task, request.outcome
        with as_application_errors():
            if outcome.verdict and outcome.verdict is not Verdict.READY:  # where the release could not run
                await self._registry.workspaces.record_verdict(
                    task.workspace_id, request.attempt, outcome.verdict, outcome.failure
                )
            await self._finish_session(task, request.attempt, outcome)
            if request.leak_suspected:
                await self._registry.workspaces.suspect_leak(task.workspace_id, request.leak_suspected)
            await self._registry.tasks.finish(task.task_id, outcome)

    def _require_host(self, place: str) -> None:
        """Raise ``NotThisHost`` unless ``place`` is this worker's host, or its queue."""
        if place not in {self._settings.host_id, host_task_queue(self._settings.host_id)}:
            raise NotThisHost(f"this is host {self._settings.host_id!r}, not {place!r}")

    async def _finish_session(self, task: TaskInput, attempt: int, outcome: TaskOutcome) -> None:
        """Record the session's end, also where the workflow knows of none: its worker died when it had asked for it."""
        unknown = SessionFinished(
            workspace_id=task.workspace_id,
            attempt=attempt,
            session_id=session_id(task.workspace_id, attempt, turn=1),
            status=SessionStatus.INTERRUPTED,
            error=outcome.error or "The workspace was released before the session's end was known.",
        )
        await self._registry.sessions.finish(outcome.session or unknown)

    def _if_missing(self, task: TaskInput, program: str) -> str:
        """Return what to say of an agent's program that the workspace does not have."""
        if task.template.backend is BackendKind.CONTAINER and task.template.container:
            image = task.template.container.image
            return f"image {image} does not have it: {how_to_install(program, image=image)}"
        return f"host {self._settings.host_id!r} does not have it: {how_to_install(program)}"

    async def _session_env(self, task: TaskInput) -> dict[str, str]:
        """Return the secret part of a session's environment; what was submitted goes before what the worker has."""
        names = [name for name in task.template.required_env if name not in task.env_names]
        if missing := [name for name in names if not self._environ.get(name)]:
            raise InvalidTask(
                f"template {task.template.name!r} needs {', '.join(missing)}: set in the worker's environment, and "
                "not empty (then start the worker again), or submitted with the task (--env NAME)"
            )
        env = {name: self._environ[name] for name in names}
        return {**env, **await self._submitted_env(task)} if task.env_names else env

    async def _submitted_env(self, task: TaskInput) -> dict[str, str]:
        what = f"the values of {', '.join(task.env_names)}, which were submitted with task {task.task_id},"
        sealed = await self._registry.task_env.find(task.task_id)
        if sealed is None:
            raise InvalidTask(f"{what} are gone: they are deleted when a task is released; submit a new task")
        try:
            return open_env(self._keys, task.task_id, sealed)
        except CannotOpen as e:
            raise InvalidTask(
                f"{what} cannot be opened: {e}; give API and worker the same TASKRUNNER_KEYS_FILE and submit a new task"
            ) from e

    async def _destroy_unless_in_use(self, backend: Backend, compute: Compute) -> None:
        """Remove the compute of an attempt that nobody wants.

        A late repeat of an activity that has long succeeded finds its attempt in use: that one is left alone.
        """
        state = await self._registry.workspaces.attempt_state(compute.workspace_id)
        if state is None or state.attempt != compute.attempt or state.status not in _IN_USE:
            await until_done(asyncio.ensure_future(backend.destroy(compute)))

    async def _stored_verdict(self, handle: WorkspaceHandle) -> LastLook | None:
        for stored in await self._registry.callbacks.find(handle.workspace_id, handle.attempt):
            if stored.signal == WORKSPACE_READY:
                return LastLook(ready=True)
            if stored.signal == PROVISIONING_FAILED:
                try:
                    return LastLook(failed=ProvisioningFailed.model_validate(stored.payload))
                except ValidationError:
                    continue
        return None

    async def _restart_harness(self, handle: WorkspaceHandle) -> None:
        if not handle.agent:
            raise SessionRefused(
                "whether the harness has started the session's run cannot be known: it keeps no list of its runs, and "
                "without our agent in the image it cannot be started anew; give it a store (HARNESS_RUN_DB)"
            )
        await self._sight.agent(handle).restart_harness()

    async def _save(self, backend: Backend, compute: Compute, request: ReleaseRequest) -> SavedResult | None:
        task_id = request.task.task_id
        reports = WorkspaceReports(self._registry.workspaces, compute.workspace_id, compute.attempt)
        saved = await backend.save_result(compute, request.preflight.base_commit, reports.lost)
        if saved is not None:
            await self._registry.results.save(task_id, saved.result, patch=saved.patch, bundle=saved.bundle)
            return saved.result
        # Nothing is there or nothing changed, unless an earlier try saved it and was cut off after the destroy.
        view = await self._registry.tasks.get(task_id)
        return view.result if view else None


def _compute(task: TaskInput, attempt: int) -> Compute:
    try:
        return Compute(workspace_id=task.workspace_id, attempt=attempt, task_id=task.task_id)
    except ValueError as e:
        raise InvalidTask(str(e)) from e
