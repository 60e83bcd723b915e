"""Whole tasks on real servers, a real worker and real workspaces: readiness, deadlines, histories, secrets."""

import asyncio
import itertools
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from temporalio.api.enums.v1 import EventType

from messages.names import WORKSPACE_READY
from messages.statuses import EventKind, FailureSource, SessionStatus, TaskStatus, TaskStep, Verdict
from messages.views import TaskView
from tests.support.git_repositories import git
from tests.support.stack import Door, Gate, Process, Stack, agent_of, command_lines, environment, folder_of

pytestmark = pytest.mark.timeout(90)

HOST = "whole-host"
SECRET = "a-secret-that-nobody-may-see"
MOST_EVENTS = 40
"""Of a whole task's history; a cluster's price and the UI's use both grow with it."""


@pytest.fixture(scope="module")
def worker_env() -> dict[str, str]:
    return {"API_KEY": SECRET}


def waiting(stack: Stack, gate: Gate, **content: object) -> str:
    """Return a template whose workspace is ready only when the gate is opened."""
    return stack.template(backend="local", readiness="callback", setup=[f"read line < {gate}"], **content)


@pytest.mark.usefixtures("worker")
async def test_a_ready_callback_ends_the_wait_and_nothing_happens_before(stack: Stack, gate: Gate) -> None:
    """S01: between the timer's start and the signal the history has nothing at all; one session follows."""
    task = await stack.submit("echo hello", template=waiting(stack, gate))
    assert (await stack.waiting(task)).step is TaskStep.WAITING_FOR_READY
    gate.open()
    view = await stack.completed(task)
    assert await stack.output(task) == "hello\n"

    history = await stack.history(task)
    wait = history.index("TIMER_STARTED")
    assert history[wait + 1] == "WORKFLOW_EXECUTION_SIGNALED"
    assert history[wait:].index("TIMER_CANCELED") == 5
    sessions = [event for event in await stack.events(task) if event.kind is EventKind.SESSION_STATUS]
    assert len({event.session_id for event in sessions}) == 1
    assert [step.step for step in view.steps] == [
        TaskStep.PREFLIGHT,
        TaskStep.PROVISIONING,
        TaskStep.WAITING_FOR_READY,
        TaskStep.VERIFYING,
        TaskStep.CREATING_SESSION,
        TaskStep.SESSION_RUNNING,
        TaskStep.RELEASING,
    ]


@pytest.mark.usefixtures("worker")
async def test_a_thousand_ready_callbacks_are_one(stack: Stack, tmp_path: Path) -> None:
    """S03: 10 in turn, then 1,000 at once, then one to the closed workflow: one signal, one session, one answer."""
    setup, session = Gate(tmp_path), Gate(tmp_path)
    template = waiting(stack, setup)

    async def run(*, repeats: int) -> tuple[TaskView, set[tuple[int, str]], list[str]]:
        task = await stack.submit(f"echo ran; read line < {session}", template=template)
        await stack.waiting(task)
        view = await stack.view(task)
        answers: set[tuple[int, str]] = set()
        async with httpx.AsyncClient(
            base_url=stack.url,
            headers={"Authorization": f"Bearer {await stack.token(view)}"},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=100),
        ) as workspace:

            async def ready() -> None:
                answer = await workspace.post(f"/api/workspaces/{view.workspace_id}/ready", json={})
                answers.add((answer.status_code, answer.text))

            for _ in range(min(repeats, 10)):
                await ready()
            await asyncio.gather(*(ready() for _ in range(repeats)))
            # The workspace is not as far as it is said to be: its session is asked for until it is.
            await stack.scheduled(task, "create_session")
            setup.open()
            assert (await stack.waiting(task, timers=2)).step is TaskStep.SESSION_RUNNING
            session.open()
            view = await stack.completed(task, timeout=60)
            await ready()
        return view, answers, await stack.history(task)

    view, answers, history = await run(repeats=1000)
    assert answers == {(200, '{"success":true}')}
    assert await stack.signals(view.id) == [WORKSPACE_READY, "session_finished"]
    assert await stack.output(view.id) == "ran\n"
    events = await stack.events(view.id)
    assert len([event for event in events if event.kind is EventKind.VERDICT]) == 1
    _, _, usual = await run(repeats=1)
    assert len(history) == len(usual)
    assert history.count("WORKFLOW_EXECUTION_SIGNALED") == usual.count("WORKFLOW_EXECUTION_SIGNALED") == 2
    setup.close()
    session.close()


@pytest.mark.usefixtures("worker")
async def test_without_a_callback_the_task_fails_at_its_deadline(stack: Stack, home: Path) -> None:
    """S08, S09: not before and at most 5 s after, heartbeats or not; the error says what there is to say."""
    template = stack.template(
        backend="local",
        readiness="callback",
        setup=["sleep 600"],
        heartbeat_interval="1s",
        runtime_config={"provision_timeout_seconds": 3},
    )
    task = await stack.submit("echo never", template=template)
    deadline = (await stack.waiting(task)).until
    assert deadline is not None
    view = await stack.view(task)
    assert abs(deadline - view.steps[-1].at - timedelta(seconds=3)) < timedelta(seconds=1)
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.finished_at is not None
    assert timedelta() <= view.finished_at - deadline < timedelta(seconds=5)
    assert view.error == f"local workspace {view.workspace_id} never became ready: still booting: setup[0]"
    assert view.failure is not None
    assert view.failure.source is FailureSource.PROVISION_TIMEOUT
    assert (view.failure.timeout_secs, view.failure.attempt, view.failure.backend.value) == (3, 1, "local")
    assert view.failure.workspace_id == view.workspace_id
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.TIMED_OUT
    assert view.workspace.last_heartbeat_at is not None
    assert view.session is None
    assert not folder_of(home, view).exists()
    events = await stack.events(task)
    assert len([event for event in events if event.kind is EventKind.WORKSPACE_PROVISION_FAILED]) == 1

    answer = await stack.call_back(view, "ready")
    assert (answer.status_code, answer.json()) == (200, {"success": False, "reason": "workspace_not_running"})
    assert await stack.view(task) == view, "S07: nothing comes back to life"


async def test_a_workspace_whose_callback_was_lost_is_found_ready_at_the_deadline(
    stack: Stack, repository: Path, tmp_path: Path
) -> None:
    """S10: the agent cannot reach the API, so the last probe finds it; its session's end comes when it can again."""
    template = stack.template(backend="worktree", readiness="callback", runtime_config={"provision_timeout_seconds": 2})
    async with (
        Door(stack.url) as door,
        stack.worker(f"{HOST}-lost", tmp_path / "home", TASKRUNNER_PUBLIC_URL=door.url),
    ):
        task = await stack.submit("echo hello", template=template, repository=(repository, f"{HOST}-lost"))
        await stack.until(task, lambda view: view.session and view.session.status is SessionStatus.RUNNING)
        history = await stack.history(task)
        assert "TIMER_FIRED" in history
        assert await stack.signals(task) == []
        await door.open()
        view = await stack.completed(task, timeout=60)
    assert await stack.output(task) == "hello\n"
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.READY
    assert view.failure is None


@pytest.mark.parametrize("kind", ["local", "worktree"])
@pytest.mark.usefixtures("worker")
async def test_an_immediate_workspace_is_not_waited_for(stack: Stack, repository: Path, kind: str) -> None:
    """S13: no wait, no timer for it, no callback, and the first request is not refused."""
    task = await stack.submit("echo hello", backend=kind, repository=(repository, HOST))
    view = await stack.completed(task)
    assert TaskStep.WAITING_FOR_READY not in [step.step for step in view.steps]
    assert await stack.signals(task) == ["session_finished"]
    history = await stack.history(task)
    assert history.count("TIMER_STARTED") <= 1, "the session's own"
    tries = [
        event.activity_task_started_event_attributes.attempt
        async for event in stack.workflow(task).fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    ]
    assert set(tries) == {1}


@pytest.mark.usefixtures("worker")
async def test_an_immediate_workspace_adds_less_than_50_ms_between_its_end_and_the_session(stack: Stack) -> None:
    """S13: by the history's own timestamps. The best of several: a busy machine makes some slow, never one fast."""

    async def waited() -> timedelta:
        task = await stack.submit("true", backend="local")
        await stack.completed(task)
        provisioned: datetime | None = None
        began: datetime | None = None
        async for event in stack.workflow(task).fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                provisioned = provisioned or event.event_time.ToDatetime()
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED and provisioned:
                began = began or event.event_time.ToDatetime()
            elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED and began and provisioned:
                marker = event.marker_recorded_event_attributes
                assert b"create_session" in marker.details["data"].payloads[0].data
                assert not marker.HasField("failure"), "the first request was refused"
                return began - provisioned  # of the workflow task in which the session is created
        raise AssertionError(f"the session of {task.task_id} was not created by the worker that had the workflow")

    assert min([await waited() for _ in range(5)]) < timedelta(milliseconds=50)


@pytest.mark.usefixtures("worker")
async def test_a_variable_that_is_missing_fails_the_task_within_a_second(stack: Stack, home: Path) -> None:
    """S30: naming it, and nothing is made. The best of several, as above."""
    template = stack.template(backend="local", required_env=["NOT_SET_ANYWHERE"])
    took: list[timedelta] = []
    for _ in range(3):
        view = await stack.ended(await stack.submit("true", template=template))
        assert view.status is TaskStatus.FAILED
        assert "NOT_SET_ANYWHERE" in (view.error or "")
        assert (view.workspace, view.session) == (None, None)
        assert not folder_of(home, view).exists()
        assert view.finished_at is not None
        took.append(view.finished_at - view.created_at)
    assert min(took) < timedelta(seconds=1)


@pytest.mark.parametrize("prompt", ["echo hello", "sleep 1"])
@pytest.mark.usefixtures("worker")
async def test_a_whole_task_takes_few_events_of_history(stack: Stack, repository: Path, prompt: str) -> None:
    task = await stack.submit(prompt, repository=(repository, HOST))
    await stack.completed(task)
    history = await stack.history(task)
    assert len(history) <= MOST_EVENTS, history


@pytest.mark.usefixtures("worker")
async def test_each_transition_leaves_one_event(stack: Stack, repository: Path) -> None:
    """S40: of the task, its workspace and its session, in the order in which they came about."""
    task = await stack.submit("echo changed > file; sleep 0.3", repository=(repository, HOST))
    view = await stack.completed(task)
    events = await stack.events(task)
    assert [(event.kind.value, event.previous, event.current) for event in events if "status" in event.kind] == [
        ("task_status", None, "queued"),
        ("task_status", "queued", "running"),
        ("workspace_status", None, "pending"),
        ("workspace_status", "pending", "provisioning"),
        ("workspace_status", "provisioning", "online"),
        ("session_status", None, "starting"),
        ("session_status", "starting", "running"),
        ("session_status", "running", "completed"),
        ("workspace_status", "online", "stopping"),
        ("workspace_status", "stopping", "removed"),
        ("task_status", "running", "completed"),
    ]
    steps = [event for event in events if event.kind is EventKind.TASK_STEP]
    assert [event.current for event in steps] == [step.step for step in view.steps]
    assert [event.previous for event in steps[1:]] == [event.current for event in steps[:-1]]
    others = {EventKind.VERDICT, EventKind.RESULT_SAVED}
    assert [event.kind for event in events if event.kind in others] == [EventKind.VERDICT, EventKind.RESULT_SAVED]
    assert len(events) == 11 + len(steps) + 2
    assert all(earlier.at <= later.at for earlier, later in itertools.pairwise(events))


async def test_secrets_stay_where_they_are_used(
    stack: Stack, worker: Process, home: Path, repository: Path, gate: Gate
) -> None:
    """S37: not in history, events, logs, answers, process lists, or files but the workspace's own configuration."""
    template = stack.template(backend="worktree", required_env=["API_KEY"])
    prompt = f'test "${{#API_KEY}}" = {len(SECRET)} && echo got it; read line < {gate}'
    task = await stack.submit(prompt, template=template, repository=(repository, HOST))
    view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
    secrets = [SECRET, await stack.token(view), stack.keys.agent_token(view.workspace_id, 1)]
    signature = secrets[1].rpartition(".")[2]

    commands = command_lines()
    folder = folder_of(home, view)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tokens_are_in = {name for name, content in files.items() if signature.encode() in content}
    assert tokens_are_in <= {"config.json", "state/callback-token"}
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in tokens_are_in)
    others = [content for name, content in files.items() if name not in tokens_are_in]
    agent_environment = environment(agent_of(view).pid)

    gate.open()
    await stack.completed(task)
    assert await stack.output(task) == "got it\n"
    seen = {
        "history": b"".join([event.SerializeToString() async for event in stack.workflow(task).fetch_history_events()]),
        "search attributes and summary": (await stack.workflow(task).describe()).raw_description.SerializeToString(),
        "events": "".join(event.model_dump_json() for event in await stack.events(task)).encode(),
        "answers": (await stack.view(task)).model_dump_json().encode(),
        "logs": (worker.log + stack.api.log + await stack.output(task)).encode(),
        "commands": "\n".join(commands).encode(),
        "files": b"".join(others),
        "agent's environment": agent_environment,
    }
    assert view.workspace_id.encode() in seen["history"]
    assert b"serve --config" in seen["commands"]
    for secret in (*secrets, signature):
        assert [place for place, content in seen.items() if secret.encode() in content] == []


@pytest.mark.usefixtures("worker")
async def test_a_task_leaves_nothing_behind(stack: Stack, home: Path, repository: Path) -> None:
    """No process, no folder, no branch, no entry of a worktree."""
    prompt = "setsid sleep 600 & (setsid sleep 600 &) ; (env -i setsid sleep 600 &) ; echo hello"
    views = [
        await stack.completed(await stack.submit(prompt, backend=kind, repository=(repository, HOST)))
        for kind in ("local", "worktree")
    ]
    assert await stack.left_over() == {}
    assert [view.result for view in views] == [None, None]
    assert not any(folder_of(home, view).exists() for view in views)
    assert git(repository, "branch", "--format=%(refname:short)").split() == ["main", "other"]
    assert not (repository / ".git/worktrees").exists()
