"""Cancelling a task through the API, at every step: it ends cancelled, nothing is left, and nothing brings it back."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from messages.names import SESSION_FINISHED, session_id
from messages.statuses import SessionStatus, TaskStatus, WorkspaceStatus
from messages.views import TaskView
from tests.support import docker
from tests.support.docker import IMAGE, Daemon
from tests.support.git_repositories import files_of, git, make_dirty, make_repository, snapshot
from tests.support.stack import Stack, folder_of, unique
from tests.support.stopping_worker import POINTS

pytestmark = pytest.mark.timeout(120)

HOST = "cancel-host"
HEARS_OF_IT = ("attempt recorded", "provisioned", "session not asked for", "session accepted")
"""Here the activity is cancelled while it waits."""
MAKING = ("worktree half made", "agent not started", "agent started, not recorded")
MAKING_CONTAINERS = (
    "container not created",
    "container created, not known",
    "container not started",
    "container started, not known",
)
RELEASING = ("release begun", "result recorded", "container not removed")
GOES_ON = (*MAKING, *MAKING_CONTAINERS, *RELEASING)
"""Here it does what it was about to do after the cancellation was asked for: the create call was on its way."""
ABANDONED = ("preflight",)
"""Here nobody waits for the activity, which goes on when the task has ended."""
LOCAL_TOO = ("provisioned", "agent started, not recorded", "session accepted", "release begun")
STATES = ("waiting for ready", "session running")
HOST_CASES = (
    *[f"worktree: {point}" for point in (*HEARS_OF_IT, *MAKING, *RELEASING[:2], *ABANDONED)],
    *[f"local: {point}" for point in LOCAL_TOO],
    *[f"{kind}: {state}" for kind in ("worktree", "local") for state in STATES],
)
CONTAINER_CASES = [
    f"container: {point}" for point in (*HEARS_OF_IT, *MAKING_CONTAINERS, *RELEASING, *ABANDONED, *STATES)
]
CASES = (*HOST_CASES, *CONTAINER_CASES)


@dataclass
class Cancelled:
    """One task as it was when it had ended, and as it is after late callbacks."""

    view: TaskView
    later: TaskView
    workflow: WorkflowExecutionStatus | None
    folder: Path
    left: list[str]
    answers: list[tuple[int, str]]


@dataclass
class Outcomes:
    by_case: dict[str, Cancelled | BaseException]
    repository: Path
    before: dict[str, str]


@pytest.fixture(scope="module")
async def host_outcomes(services: Stack, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return await cancel_all(services, tmp_path_factory.mktemp("cancel"), HOST_CASES, {})


@pytest.fixture(scope="module")
async def container_outcomes(
    services: Stack, daemon: Daemon, container_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Outcomes:
    before = docker.snapshot(daemon)
    outcomes = await cancel_all(services, tmp_path_factory.mktemp("cancel"), CONTAINER_CASES, container_env)
    assert docker.snapshot(daemon) == before
    return outcomes


@pytest.fixture
def outcomes(request: pytest.FixtureRequest, case: str) -> Outcomes:
    """What became of the tasks of which the case is one; the daemon is started only for those that need it."""
    return request.getfixturevalue("container_outcomes" if case in CONTAINER_CASES else "host_outcomes")


async def cancel_all(services: Stack, folder: Path, cases: Iterable[str], env: dict[str, str]) -> Outcomes:
    home = folder / "home"
    repository = make_repository(folder / "repository")
    make_dirty(repository)
    before = snapshot(repository)
    tasks = {case: unique("t") for case in cases}
    stops = {task: case.partition(": ")[2] for case, task in tasks.items() if case.partition(": ")[2] in POINTS}
    services.tasks.clear()
    by_case: dict[str, Cancelled | BaseException] = {}
    async with services.worker(HOST, home, stops=stops, **env) as worker:
        for case, task in tasks.items():
            kind, point = case.split(": ")
            request: dict[str, Any] = {"repository": (repository, HOST), "backend": kind}
            content: dict[str, Any] = {"container": {"image": IMAGE}} if kind == "container" else {}
            if point == "waiting for ready":
                content |= {"readiness": "callback", "setup": ["echo changed > by-the-setup; sleep 600"]}
            if content:
                request["template"] = services.template(backend=kind, **content)
            end = "true" if point in RELEASING else "sleep 600"
            await services.submit(f"echo changed > file; echo said; {end}", id=task, **request)
        await worker.said("^stopped: ", times=len(stops), timeout=60)
        for case, task in tasks.items():
            if case.endswith("waiting for ready"):
                await services.waiting(task)
            elif case.endswith("session running"):
                await services.until(task, lambda view: view.session and view.session.output_bytes)
        for case, task in tasks.items():
            await services.cancel(task)
            if case.partition(": ")[2] in GOES_ON:
                (home / f"{task}.go").write_text("go on\n")
        views = await asyncio.gather(
            *(services.ended(task, timeout=60) for task in tasks.values()), return_exceptions=True
        )
        for case, task in tasks.items():
            if case.partition(": ")[2] in ABANDONED:
                (home / f"{task}.go").write_text("go on\n")
        left = await services.left_over()
        for (case, task), view in zip(tasks.items(), views, strict=True):
            if isinstance(view, BaseException):
                by_case[case] = view
                continue
            answers = await late_callbacks(services, view)
            by_case[case] = Cancelled(
                view=view,
                later=await services.view(task),
                workflow=(await services.workflow(task).describe()).status,
                folder=folder_of(home, view),
                left=left.get(task, []),
                answers=answers,
            )
    return Outcomes(by_case, repository, before)


async def late_callbacks(services: Stack, view: TaskView) -> list[tuple[int, str]]:
    """Say that the workspace is ready, and that its session has completed, when all is over."""
    if view.workspace is None:
        return []
    session = session_id(view.workspace_id, 1, 1)
    ready = await services.call_back(view, "ready")
    finished = await services.call_back(view, f"sessions/{session}/finished", {"status": "completed"})
    return [(answer.status_code, answer.text) for answer in (ready, finished)]


@pytest.mark.parametrize("case", CASES)
async def test_a_cancelled_task_leaves_nothing_and_stays_cancelled(outcomes: Outcomes, case: str) -> None:
    """S26, S43: whatever was on its way when the cancellation came."""
    outcome = outcomes.by_case[case]
    if isinstance(outcome, BaseException):
        raise outcome
    view = outcome.view
    assert (view.status, view.error) == (TaskStatus.CANCELLED, "the task was cancelled")
    assert outcome.workflow is WorkflowExecutionStatus.CANCELED
    assert outcome.left == []
    assert not outcome.folder.exists()
    if view.workspace is not None:
        assert view.workspace.status is WorkspaceStatus.REMOVED
        assert view.workspace.leak_suspected_at is None
    assert (view.workspace is None) == case.endswith("preflight")
    if view.session is not None:
        assert view.session.status.is_final

    assert [status for status, _ in outcome.answers] == ([200, 200] if view.workspace else [])
    assert outcome.later == view


@pytest.mark.parametrize(
    "case",
    [f"{kind}: {point}" for kind in ("worktree", "local", "container") for point in (*STATES, "release begun")],
)
async def test_what_a_cancelled_task_had_changed_is_kept(outcomes: Outcomes, case: str) -> None:
    """S44: by the agent or by the setup before it."""
    kind, point = case.split(": ")
    outcome = outcomes.by_case[case]
    if isinstance(outcome, BaseException):
        raise outcome
    result = outcome.view.result
    assert result is not None
    assert result.files_changed == 1
    assert result.bundle is (kind != "worktree")
    if kind == "worktree":
        changed = files_of(outcomes.repository, f"taskrunner/{outcome.view.id}")
        assert changed["by-the-setup" if point == "waiting for ready" else "file"] == "changed"
    if point == "session running":
        assert outcome.view.session is not None
        assert outcome.view.session.status is SessionStatus.CANCELLED


@pytest.mark.parametrize("case", [HOST_CASES[0], CONTAINER_CASES[0]], ids=["host", "container"])
async def test_cancelled_tasks_leave_the_users_repository_as_it_was(outcomes: Outcomes, case: str) -> None:
    """S44: no entry of a worktree, and no branch but those that keep a change."""
    after = snapshot(outcomes.repository)
    assert {path for path in after.keys() - outcomes.before.keys() if "taskrunner" not in path} == set()
    assert {path: after.get(path) for path in outcomes.before} == outcomes.before
    branches = git(outcomes.repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/taskrunner").split()
    views = [outcome.view for outcome in outcomes.by_case.values() if isinstance(outcome, Cancelled)]
    kept = [view.result.branch for view in views if view.result and not view.result.bundle]
    assert sorted(branches) == sorted(kept)


async def test_a_task_that_has_ended_is_not_cancelled(stack: Stack, tmp_path: Path) -> None:
    async with stack.worker(HOST, tmp_path / "home"):
        task = await stack.submit("true")
        view = await stack.completed(task)
        answer = await stack.user.post(f"/api/tasks/{task}/cancel")
        assert answer.status_code == 409
        assert await stack.view(task) == view
        assert SESSION_FINISHED in await stack.signals(task)
