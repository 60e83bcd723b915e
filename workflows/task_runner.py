"""The workflow of one task."""

import asyncio
from datetime import datetime, timedelta
from typing import NoReturn, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityConfig

with workflow.unsafe.imports_passed_through():
    from messages.activities import (
        AttemptRequest,
        FinishRequest,
        LastLook,
        Preflight,
        PreflightRequest,
        Release,
        ReleaseRequest,
        SessionRequest,
        TaskActivities,
        WorkspaceHandle,
    )
    from messages.durations import format_duration
    from messages.errors import ErrorType
    from messages.names import (
        PROVISIONING_FAILED,
        SESSION_FINISHED,
        STATUS_QUERY,
        TASK_RUNNER,
        WORKSPACE_LOST,
        WORKSPACE_READY,
        compute_name,
        host_task_queue,
        session_id,
    )
    from messages.search_attributes import TASK_STATUS, TASK_STEP
    from messages.signals import ProvisioningFailed, SessionFinished, WorkspaceLost, WorkspaceReady
    from messages.statuses import FailureSource, Readiness, SessionStatus, TaskStatus, TaskStep, Verdict
    from messages.tasks import FailureDetail, ProvisionFailure, TaskInput, TaskOutcome, TaskProgress, TaskResult
    from messages.templates import HarnessAgent

from workflows import options
from workflows.cancellation import beside, cancel_requested, undisturbed, unless_cancelled
from workflows.gates import ReadyGate, SessionGate
from workflows.nearby import here_first
from workflows.outcomes import Cause, cause_of, failed, outcome_of
from workflows.progress import Progress

T = TypeVar("T")
_CANCELLED = "the task was cancelled"


class _Ended(Exception):
    """The task has come to its end before its last step; carries the outcome."""

    def __init__(self, outcome: TaskOutcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


@workflow.defn(name=TASK_RUNNER)
class TaskRunner:
    """One task, from the request to its final record.

    Life: preflight, provisioning, waiting_for_ready (unless readiness is immediate; where it is probe, one activity
    asks the workspace meanwhile), creating_session, session_running, releasing. Releasing also follows failure,
    timeout and cancellation, for whatever part of the workspace exists; a task that never passed preflight has none
    and goes straight to its final record.

    Signals: ``workspace_ready``, ``provisioning_failed``, ``session_finished`` (from callbacks), ``workspace_lost``
    (from the host's watcher). Handlers only record, in :mod:`workflows.gates`; ``run`` acts. Repeats, and what
    belongs to another workspace, attempt or session, change nothing.
    Query: ``status``. Cancellation is Temporal's own.

    Closes Completed with a TaskResult, Failed with the outcome's error, or Canceled.
    """

    @workflow.init
    def __init__(self, task: TaskInput) -> None:
        self._task = task
        self._attempt = 1
        self._name = compute_name(task.workspace_id, self._attempt)
        self._ready = ReadyGate(task.workspace_id, self._attempt)
        self._session = SessionGate(
            task.workspace_id, self._attempt, session_id(task.workspace_id, self._attempt, turn=1)
        )
        self._progress = Progress(task, self._attempt, workflow.now())
        self._preflight: Preflight | None = None
        self._handle: WorkspaceHandle | None = None
        self._session_asked_for = False
        self._run_id = ""

    @property
    def _host(self) -> str | None:
        """The host that the task needs, where it is known: the repository's, then that of its workspace."""
        if self._preflight is not None:
            return self._preflight.host_id
        return self._task.repository.host if self._task.repository else None

    @workflow.signal(name=WORKSPACE_READY)
    def workspace_ready(self, signal: WorkspaceReady) -> None:
        """Record that the workspace says it is ready."""
        self._ready.ready(signal)

    @workflow.signal(name=PROVISIONING_FAILED)
    def provisioning_failed(self, signal: ProvisioningFailed) -> None:
        """Record that the workspace says it never will be ready."""
        self._ready.failed(signal)

    @workflow.signal(name=SESSION_FINISHED)
    def session_finished(self, signal: SessionFinished) -> None:
        """Record how the session ended."""
        self._session.finished(signal)

    @workflow.signal(name=WORKSPACE_LOST)
    def workspace_lost(self, signal: WorkspaceLost) -> None:
        """Record that the compute has ended without being asked to."""
        self._ready.lost(signal)
        self._session.lost(signal)

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> TaskProgress:
        """Tell where the task is and what it waits for."""
        return self._progress.snapshot()

    @workflow.run
    async def run(self, task: TaskInput) -> TaskResult:  # noqa: ARG002 (kept by __init__)
        """Carry the task through its life; see the class."""
        workflow.set_current_details(self._progress.describe())
        outcome = await self._carry_out()
        if outcome.status is TaskStatus.FAILED:
            self._progress.last_error = outcome.error
        outcome, release, leak = await self._release(outcome)
        if cancel_requested():
            error = outcome.error if leak else _CANCELLED  # what could not be released is never hidden
            outcome = outcome.model_copy(update={"status": TaskStatus.CANCELLED, "error": error})
        await self._finish(outcome, leak)
        return self._close(outcome, release)

    async def _carry_out(self) -> TaskOutcome:
        try:
            preflight = await self._check()
            handle = await self._provision(preflight)
            await self._await_ready(handle, preflight)
            await self._create_session(handle)
            return await self._await_session(handle)
        except _Ended as end:
            return end.outcome
        except (ActivityError, asyncio.CancelledError) as e:
            # Eviction from the worker's cache looks like a cancellation too, but nobody asked for it.
            if not (is_cancelled_exception(e) and cancel_requested()):
                raise
            await self._stop_session("the task was cancelled")
            return self._cancelled()

    async def _check(self) -> Preflight:
        queue = host_task_queue(self._host) if self._host else workflow.info().task_queue
        try:
            self._preflight = await unless_cancelled(
                here_first(
                    TaskActivities.preflight_task,
                    PreflightRequest(task=self._task),
                    options.at(
                        queue,
                        f"Check that task {self._task.task_id} can run as asked",
                        options.PREFLIGHT,
                    ),
                    here=self._task.preflight_is_short,
                    announce=lambda: self._announce(TaskStep.PREFLIGHT),
                )
            )
        except ActivityError as e:
            self._fail_provisioning(e, FailureSource.PREFLIGHT, ErrorType.UNAVAILABLE)
        return self._preflight

    async def _provision(self, preflight: Preflight) -> WorkspaceHandle:
        self._enter(TaskStep.PROVISIONING, f"host {preflight.host_id} to create {self._name}")
        try:
            self._handle = await unless_cancelled(
                workflow.execute_activity_method(
                    TaskActivities.provision_workspace,
                    AttemptRequest(task=self._task, attempt=self._attempt, preflight=preflight),
                    **options.at(
                        preflight.task_queue,
                        f"Create {self._name} ({self._task.template.backend.value} on {preflight.host_id})",
                        options.PROVISION,
                    ),
                )
            )
        except ActivityError as e:
            self._fail_provisioning(e, FailureSource.PROVIDER, ErrorType.PROVISION_FAILED)
        self._progress.handle = self._handle
        return self._handle

    async def _await_ready(self, handle: WorkspaceHandle, preflight: Preflight) -> None:
        if handle.readiness is Readiness.IMMEDIATE:
            self._ready.ready_without_wait()
        elif not self._ready.decided:
            await self._await_verdict(handle, timedelta(seconds=preflight.provision_timeout_seconds))
        decision = self._ready.decision
        if decision is None or decision.verdict is Verdict.READY:  # it is never None: every branch decides
            return
        error = decision.error or "no error was reported"
        if decision.verdict is Verdict.TIMED_OUT:
            backend = self._task.template.backend.value
            error = f"{backend} workspace {self._task.workspace_id} never became ready: {error}"
        failure = self._failure(
            decision.source or FailureSource.BOOTSTRAP,
            error,
            decision.detail,
        )
        raise _Ended(failed(ErrorType.PROVISION_FAILED, error, verdict=decision.verdict, failure=failure))

    async def _await_verdict(self, handle: WorkspaceHandle, timeout: timedelta) -> None:
        """Wait for the first verdict: of a signal, of the probe where there is one, or of the deadline."""
        if handle.readiness is not Readiness.PROBE:
            await self._await_signal(handle, f"the callback of {self._name} that says it is ready", timeout)
            return
        waiting_for = f"{self._name} to answer {handle.harness_url}/healthz"
        await beside(self._probe(handle), self._await_signal(handle, waiting_for, timeout))

    async def _probe(self, handle: WorkspaceHandle) -> None:
        try:
            look = await workflow.execute_activity_method(
                TaskActivities.probe_workspace,
                handle,
                **options.at(handle.task_queue, f"Ask {self._name} whether it is ready, until it is", options.PROBE),
            )
        except ActivityError as e:
            # A callback may come all the same; without one, the deadline looks once more.
            if not is_cancelled_exception(e):
                self._progress.last_error = cause_of(e, ErrorType.WORKSPACE_UNREACHABLE).error
                workflow.set_current_details(self._progress.describe())
            return
        self._ready.looked(look)

    async def _await_signal(self, handle: WorkspaceHandle, waiting_for: str, timeout: timedelta) -> None:
        deadline = workflow.now() + timeout
        self._enter(TaskStep.WAITING_FOR_READY, waiting_for, until=deadline)
        try:
            await workflow.wait_condition(
                lambda: self._ready.decided,
                timeout=timeout,
                timeout_summary=f"{self._name} must be ready within {format_duration(timeout)}",
            )
        except TimeoutError:
            # The timer and a signal can come in one workflow task: the state decides, not the exception.
            if not self._ready.decided:
                late = workflow.now() > deadline + options.LATE
                look = await self._look_once_more(handle, options.LATE_LOOK if late else options.LAST_LOOK)
                self._ready.time_out(look)

    async def _look_once_more(self, handle: WorkspaceHandle, config: ActivityConfig) -> LastLook:
        try:
            look = await unless_cancelled(
                workflow.execute_activity_method(
                    TaskActivities.look_once_more,
                    handle,
                    **options.at(
                        handle.task_queue,
                        f"The deadline has passed: look at {self._name} once more",
                        config,
                    ),
                )
            )
        except ActivityError as e:
            if is_cancelled_exception(e):
                raise
            look = LastLook(error=cause_of(e, ErrorType.WORKSPACE_UNREACHABLE).error)
        self._progress.last_error = look.error
        return look

    async def _create_session(self, handle: WorkspaceHandle) -> None:
        self._enter(TaskStep.CREATING_SESSION, f"{self._name} to answer and to take the session", announce=False)

        def announce() -> None:  # an immediate workspace answers within milliseconds
            if handle.readiness is not Readiness.IMMEDIATE:
                self._announce(TaskStep.CREATING_SESSION)

        self._session_asked_for = True
        try:
            created = await unless_cancelled(
                here_first(
                    TaskActivities.create_session,
                    self._session_request(handle),
                    options.at(
                        handle.task_queue,
                        f"Verify {self._name} and create session {self._session.session_id}",
                        options.CREATE_SESSION,
                    ),
                    # An answer of a harness that comes too late would leave a run behind that nobody knows.
                    here=self._task.revision >= 1 and not isinstance(self._task.template.agent, HarnessAgent),
                    announce=announce,
                )
            )
        except ActivityError as e:
            if is_cancelled_exception(e):
                raise
            if self._session.end is not None and self._session.end.status is not SessionStatus.INTERRUPTED:
                return  # it did start: its end is known
            cause = cause_of(e, ErrorType.WORKSPACE_UNREACHABLE, self._host)
            failure = None
            if cause.attached is not None or cause.type is ErrorType.WORKSPACE_UNREACHABLE:
                failure = self._failure_of(cause, FailureSource.PROBE)
            raise _Ended(failed(cause.type, cause.error, verdict=Verdict.READY, failure=failure)) from e
        self._run_id = created.run_id if created else ""

    async def _await_session(self, handle: WorkspaceHandle) -> TaskOutcome:
        """Wait for the session's end: a callback of our agent brings it, or the activity that follows a harness."""
        if isinstance(self._task.template.agent, HarnessAgent) and self._session.end is None:
            ended_in_time = await beside(self._follow(handle), self._await_end())
        else:
            ended_in_time = await self._await_end()
        if not ended_in_time:
            return await self._end_overdue_session(self._task.template.session_timeout)
        assert self._session.end is not None  # what was waited for
        return outcome_of(self._session.end)

    async def _follow(self, handle: WorkspaceHandle) -> None:
        try:
            end = await workflow.execute_activity_method(
                TaskActivities.follow_session,
                self._session_request(handle),
                **options.at(
                    handle.task_queue, f"Follow session {self._session.session_id} in {self._name}", options.FOLLOW
                ),
            )
        except ActivityError as e:
            if not is_cancelled_exception(e):
                self._session.interrupt(cause_of(e, ErrorType.WORKSPACE_UNREACHABLE).error)
            return
        self._session.finished(end)

    async def _await_end(self) -> bool:
        """Return whether the session ended before its deadline."""
        timeout = self._task.template.session_timeout
        if self._session.end is None:
            self._enter(
                TaskStep.SESSION_RUNNING,
                f"the end of session {self._session.session_id} in {self._name}",
                until=workflow.now() + timeout,
            )
        try:
            await workflow.wait_condition(
                lambda: self._session.end is not None,
                timeout=timeout,
                timeout_summary=f"The session must end within {format_duration(timeout)}",
            )
        except TimeoutError:
            return self._session.end is not None
        return True

    async def _end_overdue_session(self, timeout: timedelta) -> TaskOutcome:
        error = f"the session did not end within {format_duration(timeout)}; a longer time can be given with --timeout"
        self._progress.last_error = error
        end = await self._stop_session(error)
        if end is not None and end.status is not SessionStatus.CANCELLED:
            return outcome_of(end)  # it ended by itself, and its callback was still on the way
        return failed(ErrorType.SESSION_TIMED_OUT, error, verdict=Verdict.READY, session=end)

    async def _stop_session(self, reason: str) -> SessionFinished | None:
        """End the session politely, so that its last output arrives; the release ends whatever this leaves.

        Returns how it ended, or None where that cannot be learned.
        """
        if self._handle is None or not self._session_asked_for:
            return None
        if self._session.end is not None:
            return self._session.end
        try:
            end = await undisturbed(
                workflow.start_activity_method(
                    TaskActivities.stop_session,
                    self._session_request(self._handle, reason),
                    **options.at(
                        self._handle.task_queue,
                        f"End session {self._session.session_id}: {reason}",
                        options.STOP_SESSION,
                    ),
                )
            )
            self._session.finished(end)
        except ActivityError as e:
            self._progress.last_error = cause_of(e, ErrorType.WORKSPACE_UNREACHABLE).error
        return self._session.end

    async def _release(self, outcome: TaskOutcome) -> tuple[TaskOutcome, Release, str]:
        """Return the outcome, what was kept, and why compute may still exist (empty where none does)."""
        if self._preflight is None:
            return outcome, Release(), ""
        self._enter(TaskStep.RELEASING, f"host {self._preflight.host_id} to save the result and to remove {self._name}")
        try:
            release = await undisturbed(
                workflow.start_activity_method(
                    TaskActivities.release_workspace,
                    ReleaseRequest(
                        task=self._task,
                        attempt=self._attempt,
                        preflight=self._preflight,
                        outcome=outcome,
                        session_id=self._session.session_id if self._session_asked_for else None,
                    ),
                    **options.at(
                        self._preflight.task_queue,
                        f"Save the result and remove {self._name}",
                        options.RELEASE,
                    ),
                )
            )
        except ActivityError as e:
            cause = cause_of(e, ErrorType.UNAVAILABLE, self._host)
            self._progress.last_error = cause.error
            texts = dict.fromkeys(text for text in (outcome.error, cause.error) if text)  # one trouble is told once
            update = {"error": "; then ".join(texts), "error_type": outcome.error_type or cause.type}
            if outcome.status is not TaskStatus.CANCELLED:
                update["status"] = TaskStatus.FAILED
            return outcome.model_copy(update=update), Release(), cause.error
        return outcome, release, ""

    async def _finish(self, outcome: TaskOutcome, leak: str) -> None:
        self._progress.end(outcome.status, workflow.now())
        workflow.set_current_details(self._progress.describe())
        _upsert(TASK_STATUS, outcome.status.value)
        self._announce(self._progress.step)  # a short preflight that refused the task was never announced
        await undisturbed(
            workflow.start_local_activity_method(
                TaskActivities.finish_task,
                FinishRequest(task=self._task, attempt=self._attempt, outcome=outcome, leak_suspected=leak),
                **options.local(f"Record that task {self._task.task_id} is {outcome.status.value}", options.FINISH),
            )
        )

    def _close(self, outcome: TaskOutcome, release: Release) -> TaskResult:
        if outcome.status is TaskStatus.CANCELLED:
            raise asyncio.CancelledError
        if outcome.status is not TaskStatus.COMPLETED:
            raise ApplicationError(outcome.error, type=outcome.error_type, non_retryable=True)
        return TaskResult(
            task_id=self._task.task_id,
            exit_code=outcome.session.exit_code if outcome.session else None,
            summary=outcome.session.summary if outcome.session else "",
            result=release.result,
        )

    def _enter(self, step: TaskStep, waiting_for: str, *, until: datetime | None = None, announce: bool = True) -> None:
        session = self._session.session_id if self._session_asked_for else None
        self._progress.enter(step, waiting_for, workflow.now(), until, session)
        workflow.set_current_details(self._progress.describe())
        if announce:
            self._announce(step)

    def _announce(self, step: TaskStep) -> None:
        """Let the search attribute say it, where it does not: an event of the history and a write each time."""
        if self._task.revision == 0 and step is TaskStep.PREFLIGHT:
            return  # every task was started with it
        if workflow.info().typed_search_attributes.get(TASK_STEP) != step.value:
            _upsert(TASK_STEP, step.value)

    def _session_request(self, handle: WorkspaceHandle, reason: str = "") -> SessionRequest:
        session = self._session.session_id
        return SessionRequest(task=self._task, handle=handle, session_id=session, reason=reason, run_id=self._run_id)

    def _failure(self, source: FailureSource, error: str, detail: str = "") -> ProvisionFailure:
        return ProvisionFailure(
            source=source,
            backend=self._task.template.backend,
            workspace_id=self._task.workspace_id,
            attempt=self._attempt,
            timeout_secs=self._preflight.provision_timeout_seconds if self._preflight else None,
            error=error,
            detail=detail,
        )

    def _fail_provisioning(self, e: ActivityError, source: FailureSource, otherwise: ErrorType) -> NoReturn:
        if is_cancelled_exception(e):
            raise e
        cause = cause_of(e, otherwise, self._host)
        failure = self._failure_of(cause, source)
        raise _Ended(failed(cause.type, cause.error, verdict=Verdict.FAILED, failure=failure)) from e

    def _failure_of(self, cause: Cause, source: FailureSource) -> ProvisionFailure:
        """Return the attempt's failure; ``source`` is who noticed it where the activity attached nothing."""
        found = cause.attached or FailureDetail(source=source)
        return self._failure(found.source, cause.error, found.detail)

    def _cancelled(self) -> TaskOutcome:
        verdict = self._ready.decision.verdict if self._ready.decision else None
        return TaskOutcome(status=TaskStatus.CANCELLED, error=_CANCELLED, verdict=verdict, session=self._session.end)


def _upsert(key: SearchAttributeKey[str], value: str) -> None:
    workflow.upsert_search_attributes([key.value_set(value)])  # pyright: ignore[reportUnknownMemberType]
