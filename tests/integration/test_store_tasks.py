"""Tasks: submitted once, read whole and in pages, with whatever is known of them."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from messages.activities import Preflight
from messages.errors import ErrorType
from messages.names import task_workflow_id
from messages.statuses import BackendKind, EventKind, FailureSource, SessionStatus, TaskStatus, TaskStep, Verdict
from messages.tasks import Repository, SavedResult, TaskOutcome
from messages.templates import RuntimeConfig, Template
from store.errors import InvalidCursor, NotStorable, TaskConflict
from store.registry import Registry
from tests.support.records import a_failure, a_handle, a_task, put, queued, rows, running, starting


async def test_two_submissions_at_once_make_one_task(registry: Registry, database_url: str) -> None:
    """S20: through two API processes."""
    async with Registry.connect(database_url) as other:
        for number in range(10):
            task = a_task(f"t-{number}")
            submissions = await asyncio.gather(
                *(r.tasks.create(task, digest="d", idempotency_key=None) for r in (registry, other) * 3)
            )
            assert sorted(s.created for s in submissions) == [False] * 5 + [True]
            assert all(s.task == task for s in submissions)
            assert [event.current for event in await registry.tasks.events(task.task_id)] == [TaskStatus.QUEUED]


async def test_an_idempotency_key_stands_for_the_first_task(registry: Registry) -> None:
    """S20: each repeat comes with a new provisional id."""
    submissions = await asyncio.gather(
        *(registry.tasks.create(a_task(f"t-{n}"), digest="d", idempotency_key="key") for n in range(5))
    )
    assert sum(s.created for s in submissions) == 1
    assert len({s.task.task_id for s in submissions}) == 1
    with pytest.raises(TaskConflict, match="idempotency key 'key' already stands for another request") as conflict:
        await registry.tasks.create(a_task("t-9"), digest="other", idempotency_key="key")
    assert conflict.value.task_id == submissions[0].task.task_id
    assert len(await rows(registry, "tasks")) == 1


async def test_the_same_id_with_another_request_is_refused(registry: Registry) -> None:
    """S20."""
    task = await queued(registry)
    with pytest.raises(TaskConflict, match="id 't-1' already stands for another request"):
        await registry.tasks.create(task, digest="other", idempotency_key=None)
    assert (await registry.tasks.create(a_task("t-2"), digest="d", idempotency_key="key")).created
    for digest in ("d", "digest of t-1"):  # the id belongs to one request, the key to the other
        with pytest.raises(TaskConflict):
            await registry.tasks.create(task, digest=digest, idempotency_key="key")


async def test_the_input_comes_back_as_it_was(registry: Registry) -> None:
    template = Template(
        name="hermes",
        backend=BackendKind.WORKTREE,
        setup=("uv sync",),
        env={"B": "2", "A": "1"},
        required_env=("KEY",),
        runtime_config=RuntimeConfig(provision_timeout_seconds=1200),
        session_timeout=timedelta(milliseconds=90_500),
    )
    task = a_task(
        template=template, prompt="say 'hé' \\u0000 ☃", repository=Repository(path="/a b", host="h"), ref="main"
    )
    await registry.tasks.create(task, digest="d", idempotency_key=None)
    again = await registry.tasks.create(task, digest="d", idempotency_key=None)
    assert again == (task, False, TaskStatus.QUEUED)


async def test_a_task_with_a_nul_character_is_refused(registry: Registry) -> None:
    """S36."""
    template = Template(name="local", backend=BackendKind.LOCAL, env={"A": "a\0b"})
    with pytest.raises(NotStorable, match="NUL"):
        await registry.tasks.create(a_task(template=template), digest="d", idempotency_key=None)
    assert await rows(registry, "tasks") == []


async def test_a_queued_task_is_shown(registry: Registry) -> None:
    """S49: no workspace, no session, no timeout, no step yet."""
    task = await queued(registry)
    view = await registry.tasks.get(task.task_id)
    assert view
    assert (view.status, view.step, view.prompt, view.template) == (TaskStatus.QUEUED, None, "echo hello", "local")
    assert (view.workspace, view.session, view.result, view.failure, view.steps) == (None, None, None, None, [])
    assert (view.workflow_id, view.workspace_id) == (task_workflow_id(task.task_id), task.workspace_id)
    assert await registry.tasks.get("nobody") is None


async def test_a_task_with_everything_is_shown(registry: Registry) -> None:
    task, session = await starting(registry, a_task(repository=Repository(path="/repo"), ref="main"))
    await registry.tasks.record_preflight(
        task.task_id,
        Preflight(
            host_id="here",
            task_queue="q",
            provision_timeout_seconds=600,
            provision_timeout_rule="default",
            base_commit="c",
        ),
    )
    result = SavedResult(branch="b", base_commit="c", commit="d", files_changed=1, insertions=2, deletions=3)
    await registry.results.save(task.task_id, result, patch=None, bundle=None)
    failure = a_failure(task)
    outcome = TaskOutcome(
        status=TaskStatus.FAILED, error="no uv", error_type=ErrorType.PROVISION_FAILED, failure=failure
    )
    assert await registry.tasks.finish(task.task_id, outcome)
    view = await registry.tasks.get(task.task_id)
    assert view
    assert (view.status, view.error, view.failure, view.result) == (TaskStatus.FAILED, "no uv", failure, result)
    assert (view.repository, view.ref) == (task.repository, "main")
    assert (view.provision_timeout_seconds, view.provision_timeout_rule) == (600, "default")
    assert view.readiness == "immediate"
    assert [step.step for step in view.steps] == [
        TaskStep.PREFLIGHT,
        TaskStep.PROVISIONING,
        TaskStep.CREATING_SESSION,
    ]
    assert sorted(step.at for step in view.steps) == [step.at for step in view.steps]
    assert view.session
    assert (view.session.id, view.session.status) == (session, SessionStatus.STARTING)
    assert view.workspace
    assert view.workspace.id == task.workspace_id
    assert view.started_at
    assert view.finished_at
    assert datetime.now(UTC) - view.finished_at < timedelta(minutes=1)


async def test_a_task_that_fails_in_preflight_leaves_its_failure_event(registry: Registry) -> None:
    """S30: there is no workspace row, and the event is written all the same."""
    task = await running(registry)
    failure = a_failure(task, source=FailureSource.PREFLIGHT)
    await registry.tasks.finish(
        task.task_id, TaskOutcome(status=TaskStatus.FAILED, error="KEY is not set", failure=failure)
    )
    events = await registry.tasks.events(task.task_id)
    assert [e.kind for e in events][-2:] == [EventKind.WORKSPACE_PROVISION_FAILED, EventKind.TASK_STATUS]
    assert events[-2].detail == failure.model_dump(mode="json")


async def test_a_failed_attempt_leaves_one_failure_event(registry: Registry) -> None:
    """S06: recorded with the verdict and again with the outcome."""
    task, _ = await starting(registry)
    first, second = a_failure(task), a_failure(task, source=FailureSource.EXIT)
    assert await registry.workspaces.record_verdict(task.workspace_id, 1, Verdict.FAILED, first)
    await registry.tasks.finish(task.task_id, TaskOutcome(status=TaskStatus.FAILED, error="no", failure=second))
    found = [e for e in await registry.tasks.events(task.task_id) if e.kind is EventKind.WORKSPACE_PROVISION_FAILED]
    assert [e.detail["source"] for e in found] == [FailureSource.BOOTSTRAP]


@pytest.mark.parametrize("error", ["", "\0"])
async def test_an_error_is_never_empty(registry: Registry, error: str) -> None:
    """S40."""
    task = await running(registry)
    await registry.tasks.finish(task.task_id, TaskOutcome(status=TaskStatus.CANCELLED, error=error))
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.error == "The task ended as cancelled without a reason."
    assert (await registry.tasks.events(task.task_id))[-1].detail["error"] == view.error


async def test_a_completed_task_has_no_error(registry: Registry) -> None:
    task = await running(registry)
    await registry.tasks.finish(task.task_id, TaskOutcome(status=TaskStatus.COMPLETED))
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.error is None


async def test_a_list_is_read_page_by_page(registry: Registry) -> None:
    """Newest first; tasks that come meanwhile disturb nothing, equal times lose nothing."""
    for number in range(7):
        await queued(registry, a_task(f"t-{number}"))
    for number in (2, 3, 4):  # created at the very same moment
        await put(registry, "tasks", f"t-{number}", created_at="2024-01-01T00:00:00Z")
    seen: list[str] = []
    cursor = None
    while True:
        page = await registry.tasks.list(limit=2, cursor=cursor)
        seen += [task.id for task in page.tasks]
        await queued(registry, a_task(f"t-new-{len(seen)}"))
        if (cursor := page.next_cursor) is None:
            break
    assert seen == ["t-6", "t-5", "t-1", "t-0", "t-4", "t-3", "t-2"]


async def test_a_list_is_filtered(registry: Registry) -> None:
    worktree = Template(name="worktree", backend=BackendKind.WORKTREE)
    await queued(registry, a_task("t-queued"))
    await running(registry, a_task("t-running", template=worktree))

    async def ids(**filters: object) -> list[str]:
        return [task.id for task in (await registry.tasks.list(**filters)).tasks]  # pyright: ignore[reportArgumentType]

    assert await ids() == ["t-running", "t-queued"]
    assert await ids(status=TaskStatus.QUEUED) == ["t-queued"]
    assert await ids(step=TaskStep.PREFLIGHT) == ["t-running"]
    assert (await registry.tasks.list(step=TaskStep.PREFLIGHT)).tasks[0].step is TaskStep.PREFLIGHT
    assert await ids(backend=BackendKind.WORKTREE, status=TaskStatus.RUNNING) == ["t-running"]
    assert await ids(backend=BackendKind.VM) == []
    # What has ended is at no step any more.
    assert await registry.tasks.finish("t-running", TaskOutcome(status=TaskStatus.FAILED, error="no"))
    assert await ids(step=TaskStep.PREFLIGHT) == []
    (ended,) = (await registry.tasks.list(status=TaskStatus.FAILED)).tasks
    shown = await registry.tasks.get("t-running")
    assert shown
    assert (ended.step, shown.step, [step.step for step in shown.steps]) == (None, None, [TaskStep.PREFLIGHT])


async def test_a_list_cuts_long_prompts(registry: Registry) -> None:
    await queued(registry, a_task(prompt="x" * 5000))
    assert len((await registry.tasks.list()).tasks[0].prompt) == 1000
    assert len((await registry.tasks.get("t-1")).prompt) == 5000  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    "cursor", ["", "x", "W10=", "bnVsbA==", "WyIyMDI0IiwgMV0=", "é", "WyIyMDI0LTAxLTAxIiwgImEiXQ=="]
)
async def test_a_bad_cursor_is_refused(registry: Registry, cursor: str) -> None:
    """S36."""
    with pytest.raises(InvalidCursor, match="is not a cursor"):
        await registry.tasks.list(cursor=cursor)


async def test_events_are_read_from_where_a_reader_stopped(registry: Registry) -> None:
    """S39."""
    task = await running(registry)
    events = await registry.tasks.events(task.task_id)
    assert await registry.tasks.events(task.task_id, limit=1) == events[:1]
    assert await registry.tasks.events(task.task_id, after=events[0].id) == events[1:]
    await queued(registry, a_task("t-other"))
    assert await registry.tasks.events(task.task_id, after=events[-1].id) == []


async def test_a_new_attempt_begins_its_steps_anew(registry: Registry) -> None:
    task, _ = await starting(registry)
    await put(registry, "workspaces", task.workspace_id, status="failed")
    await registry.workspaces.begin_attempt(task, 2, host_id="here", workflow_id=task_workflow_id(task.task_id))
    assert await registry.workspaces.record_provisioned(a_handle(task, attempt=2))
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.step is TaskStep.WAITING_FOR_READY
    assert [s.step for s in view.steps][-3:] == ["creating_session", "provisioning", "waiting_for_ready"]
