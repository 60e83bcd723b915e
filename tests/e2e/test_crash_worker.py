"""kill -9 of the worker, at every step of a task: the next worker carries on, and nothing is done twice."""

import asyncio
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from messages.names import compute_name
from messages.statuses import BackendKind, EventKind, SessionStatus, TaskStatus, TaskStep, Verdict, WorkspaceStatus
from messages.tasks import TaskResult
from messages.views import EventView, TaskView
from tests.support import docker
from tests.support.docker import IMAGE, TOLD, Daemon, recorded, tell
from tests.support.git_repositories import files_of, git, make_dirty, make_repository, snapshot
from tests.support.stack import Door, Gate, Stack, folder_of, kill_agent, unique
from tests.support.stopping_worker import POINTS, POINTS_OF_CONTAINERS, POINTS_OF_WORKTREES

pytestmark = pytest.mark.timeout(120)

HOST = "crash-host"
WHILE_AWAY = "while no worker was there"
WITH_THE_NEXT = "with the next worker there"
LOCAL_TOO = (
    "agent not started",
    "agent started, not recorded",
    "session accepted",
    "result kept",
    "result recorded",
    "compute gone",
)
HOST_CASES = (
    *[f"worktree: {point}" for point in POINTS_OF_WORKTREES],
    *[f"local: {point}" for point in LOCAL_TOO],
    *[f"{kind}: session ended {when}" for kind in ("worktree", "local") for when in (WHILE_AWAY, WITH_THE_NEXT)],
    *[f"local: ready {when}" for when in (WHILE_AWAY, WITH_THE_NEXT)],
)
LEAVE_A_WAITING_AGENT = {
    "worktree: worktree half made",
    *(f"{kind}: agent started, not recorded" for kind in ("worktree", "local")),
}
"""Nobody has told it to go on, so it ends with its worker, and has done nothing."""
CONTAINER_CASES = (
    *[f"container: {point}" for point in POINTS_OF_CONTAINERS],
    *[f"container: {what} {when}" for what in ("session ended", "ready") for when in (WHILE_AWAY, WITH_THE_NEXT)],
)
CASES = (*HOST_CASES, *CONTAINER_CASES)


@dataclass
class Outcome:
    """What became of one task whose worker was killed."""

    view: TaskView
    returned: TaskResult
    events: list[EventView]
    ran: int
    starts: int
    folder: Path
    output: str
    left: list[str]


@dataclass
class Crash:
    """What the next worker made of the tasks of one that was killed while each of them was at another point."""

    outcomes: dict[str, Outcome | BaseException]
    repository: Path
    before: dict[str, str]
    home: list[str]
    """What is in the worker's home afterwards, but for what it keeps for all tasks and what the test put there."""


class OnHost:
    """Workspaces that are processes of this host: how their programs wait, and how often they ran."""

    cases = HOST_CASES

    def __init__(self, folder: Path) -> None:
        self.env: dict[str, str] = {}
        self._folder = folder
        self._gates: dict[str, Gate] = {}

    def waits(self, task: str) -> str:
        """Return what a program of the task waits with."""
        self._gates[task] = Gate(self._folder)
        return f"read line < {self._gates[task]}"

    async def go_on(self, view: TaskView) -> None:
        self._gates[view.id].open()

    def runs(self, task: str) -> str:
        """Return what notes that a program of the task has run."""
        return f"echo ran >> {self._folder}/{task}.ran"

    async def ran(self, view: TaskView) -> int:
        ran = self._folder / f"{view.id}.ran"
        return len(ran.read_text().split()) if ran.exists() else 0

    def starts(self, compute: str) -> int:
        return (self._folder / "home/starts").read_text().split().count(compute)

    def close(self) -> None:
        for gate in self._gates.values():
            gate.close()


class InContainers:
    """Workspaces that are containers: as :class:`OnHost`, but for what of this host a container does not see."""

    cases = CONTAINER_CASES

    def __init__(self, services: Stack, daemon: Daemon, env: dict[str, str], counted: Counter[tuple[str, str]]) -> None:
        self.env = env
        self._services = services
        self._daemon = daemon
        self._counted = counted

    def waits(self, task: str) -> str:
        return TOLD

    async def go_on(self, view: TaskView) -> None:
        await tell(self._daemon, compute_name(view.workspace_id, 1))

    def runs(self, task: str) -> str:
        return f"echo {task} >> ran"

    async def ran(self, view: TaskView) -> int:
        return (await self._services.user.get(f"/api/tasks/{view.id}/diff")).text.count(f"+{view.id}\n")

    def starts(self, compute: str) -> int:
        return max(self._counted[what, compute] for what in ("create", "start", "destroy"))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
async def host_crash(services: Stack, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    folder = tmp_path_factory.mktemp("crash")
    return await crash_of(services, folder, OnHost(folder))


@pytest.fixture(scope="module")
async def container_crash(
    services: Stack, daemon: Daemon, container_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Crash:
    before = docker.snapshot(daemon)
    with recorded(daemon) as counted:
        site = InContainers(services, daemon, container_env, counted)
        crash = await crash_of(services, tmp_path_factory.mktemp("crash"), site)
    assert docker.snapshot(daemon) == before
    return crash


@pytest.fixture
def crash(request: pytest.FixtureRequest, case: str) -> Crash:
    """The crash that the case is one of; the daemon is started only for those that need it."""
    return request.getfixturevalue("container_crash" if case in CONTAINER_CASES else "host_crash")


def in_home(home: Path) -> list[str]:
    ours = re.compile(r"workspaces|containers|records|repositories|logs|agent-.*\.pyz|starts|.*\.go")
    found = [path.relative_to(home) for pattern in ("*", "*/*") for path in home.glob(pattern)]
    return sorted(str(path) for path in found if not ours.fullmatch(str(path)))


async def crash_of(services: Stack, folder: Path, site: OnHost | InContainers) -> Crash:
    services.tasks.clear()
    try:
        return await _crash(services, folder, site)
    except BaseException:
        await services.clean_up()
        raise


async def _crash(services: Stack, folder: Path, site: OnHost | InContainers) -> Crash:
    home = folder / "home"
    repository = make_repository(folder / "repository")
    make_dirty(repository)
    before = snapshot(repository)
    tasks = {case: unique("t") for case in site.cases}
    stops = {task: case.partition(": ")[2] for case, task in tasks.items() if case.partition(": ")[2] in POINTS}
    gated: dict[str, TaskView] = {}
    async with services.worker(HOST, home, stops=stops, **site.env) as worker:
        for case, task in tasks.items():
            kind, point = case.split(": ")
            prompt = f"{site.runs(task)}; echo said; echo changed > made-by-agent"
            request: dict[str, Any] = {"repository": (repository, HOST)} if kind == "worktree" else {}
            content = {"container": {"image": IMAGE}} if kind == "container" else {}
            if point.startswith("session ended"):
                prompt += f"; {site.waits(task)}"
            elif point.startswith("ready"):
                content |= {"readiness": "callback", "setup": [site.waits(task)]}
            if content:
                request["template"] = services.template(backend=kind, **content)
            await services.submit(prompt, id=task, **request)
        for case, task in tasks.items():
            if ": session ended" in case:
                gated[case] = await services.at_step(task, TaskStep.SESSION_RUNNING)
            elif ": ready" in case:
                gated[case] = await services.at_step(task, TaskStep.WAITING_FOR_READY)
        await worker.said("^stopped: ", times=len(stops), timeout=60)
        await worker.kill()
    for case, view in gated.items():
        if case.endswith(WHILE_AWAY):
            await site.go_on(view)
    async with services.worker(HOST, home, stops={}, **site.env):
        for case, view in gated.items():
            if case.endswith(WITH_THE_NEXT):
                await site.go_on(view)
        views = await asyncio.gather(
            *(services.ended(task, timeout=60) for task in tasks.values()), return_exceptions=True
        )
        left = await services.left_over()
    outcomes: dict[str, Outcome | BaseException] = {}
    for (case, task), view in zip(tasks.items(), views, strict=True):
        if isinstance(view, BaseException):
            outcomes[case] = view
            continue
        outcomes[case] = Outcome(
            view=view,
            returned=await services.workflow(task).result(),
            events=await services.events(task),
            ran=await site.ran(view),
            starts=site.starts(compute_name(view.workspace_id, 1)),
            folder=folder_of(home, view),
            output=await services.output(task),
            left=left.get(task, []),
        )
    site.close()
    return Crash(outcomes, repository, before, in_home(home))


@pytest.mark.parametrize("case", CASES)
async def test_a_task_whose_worker_was_killed_completes_and_does_nothing_twice(crash: Crash, case: str) -> None:
    """S21, S22: one compute, one session, one run of the program, one result, whatever the worker was doing."""
    outcome = crash.outcomes[case]
    if isinstance(outcome, BaseException):
        raise outcome
    view = outcome.view
    assert view.status is TaskStatus.COMPLETED, view.error
    assert outcome.starts == (2 if case in LEAVE_A_WAITING_AGENT else 1)
    assert outcome.ran == 1
    assert outcome.output == "said\n"
    assert view.session is not None
    assert (view.session.status, view.session.attempt, view.session.turn) == (SessionStatus.COMPLETED, 1, 1)
    assert view.workspace is not None
    assert (view.workspace.status, view.workspace.verdict) == (WorkspaceStatus.REMOVED, Verdict.READY)
    assert view.workspace.leak_suspected_at is None
    assert not outcome.folder.exists()
    assert outcome.left == []

    assert view.result is not None
    assert outcome.returned.result == view.result
    assert view.result.bundle is (view.backend is not BackendKind.WORKTREE)
    if view.backend is BackendKind.WORKTREE:
        assert git(crash.repository, "rev-parse", f"taskrunner/{view.id}") == view.result.commit
        assert files_of(crash.repository, view.result.commit)["made-by-agent"] == "changed"
        assert view.result.files_changed == 1


@pytest.mark.parametrize("case", CASES)
async def test_a_crash_doubles_no_event(crash: Crash, case: str) -> None:
    """S40: each transition left one event, though the activity that made it ran twice."""
    outcome = crash.outcomes[case]
    if isinstance(outcome, BaseException):
        raise outcome
    told = Counter((event.kind, event.current) for event in outcome.events)
    assert set(told.values()) == {1}, told
    assert [event.kind for event in outcome.events].count(EventKind.RESULT_SAVED) == 1
    assert told[EventKind.SESSION_STATUS, SessionStatus.COMPLETED] == 1
    assert told[EventKind.VERDICT, Verdict.READY] == 1
    assert told[EventKind.TASK_STATUS, TaskStatus.COMPLETED] == 1


@pytest.mark.parametrize("case", [HOST_CASES[0], CONTAINER_CASES[0]], ids=["host", "container"])
async def test_crashes_leave_nothing_in_the_workers_home(crash: Crash) -> None:
    """S21: half-made checkouts and half-saved results neither."""
    assert crash.home == []


async def test_crashes_leave_the_users_repository_as_it_was(host_crash: Crash) -> None:
    """S44: but for the branches of the results; no entry of a worktree, no half-made branch."""
    after = snapshot(host_crash.repository)
    added = {path for path in after.keys() - host_crash.before.keys() if "taskrunner" not in path}
    assert added == set()
    assert {path: after.get(path) for path in host_crash.before} == host_crash.before
    branches = git(host_crash.repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/taskrunner").split()
    kept = [
        o.view
        for o in host_crash.outcomes.values()
        if isinstance(o, Outcome) and o.view.backend is BackendKind.WORKTREE
    ]
    assert sorted(branches) == sorted(f"taskrunner/{view.id}" for view in kept)


async def test_a_worker_that_was_cut_off_and_its_successor_make_one_compute(
    stack: Stack, repository: Path, tmp_path: Path
) -> None:
    """S43: the first worker freezes for longer than its heartbeats may be silent, and thaws while the next works."""
    home, task = tmp_path / "home", unique("t")
    ran = tmp_path / "ran"
    async with stack.worker(HOST, home, stops={task: "agent not started"}) as first:
        await stack.submit(f"echo ran >> {ran}", id=task, repository=(repository, HOST))
        await first.said("^stopped: ")
        first.freeze()
        async with stack.worker(HOST, home, stops={}):
            # Nothing tells a test that a heartbeat is overdue but the server's own view of the activity.
            await stack.activity_attempt(task, "provision_workspace", 2)
            first.thaw()
            (home / f"{task}.go").write_text("go on\n")
            view = await stack.completed(task)
            # Cut off before its agent was recorded, the first may undo what it made (the successor then makes it
            # anew) or be done in time (it is adopted): never are there two.
            assert set((home / "starts").read_text().split()) == {compute_name(view.workspace_id, 1)}
            assert ran.read_text() == "ran\n"
            assert not folder_of(home, view).exists()
        await first.kill()


@pytest.mark.usefixtures("leaves_no_container")
async def test_a_worker_that_was_cut_off_and_its_successor_make_one_container(
    stack: Stack, daemon: Daemon, container_env: dict[str, str], tmp_path: Path
) -> None:
    """S43: the same, while the first worker's create call is on its way."""
    home, task = tmp_path / "home", unique("t")
    template = stack.template(backend="container", container={"image": IMAGE})
    with recorded(daemon) as counted:
        async with stack.worker(HOST, home, stops={task: "container not created"}, **container_env) as first:
            await stack.submit(f"echo {task} >> ran", id=task, template=template)
            await first.said("^stopped: ")
            first.freeze()
            async with stack.worker(HOST, home, stops={}, **container_env):
                await stack.activity_attempt(task, "provision_workspace", 2)
                first.thaw()
                (home / f"{task}.go").write_text("go on\n")
                view = await stack.completed(task)
            await first.kill()
        ran = await InContainers(stack, daemon, container_env, counted).ran(view)
    assert ran == 1
    assert {name for _, name in counted} == {compute_name(view.workspace_id, 1)}
    assert not folder_of(home, view).exists()


@pytest.mark.usefixtures("leaves_no_container")
async def test_containers_of_tasks_that_are_cancelled_while_no_worker_is_there_go_with_the_next(
    stack: Stack, container_env: dict[str, str], tmp_path: Path
) -> None:
    """S26, S43, S21: whatever of them exists, known or not."""
    home = tmp_path / "home"
    points = [*(point for point in POINTS if point.startswith("container ")), "session accepted", "result kept"]
    stops = {unique("t"): point for point in points}
    template = stack.template(backend="container", container={"image": IMAGE})
    async with stack.worker(HOST, home, stops=stops, **container_env) as worker:
        for task, point in stops.items():
            end = "sleep 600" if point == "session accepted" else "true"
            await stack.submit(f"echo changed > file; echo said; {end}", id=task, template=template)
        await worker.said("^stopped: ", times=len(stops), timeout=60)
        await worker.kill()
    for task in stops:
        await stack.cancel(task)
    async with stack.worker(HOST, home, stops={}, **container_env):
        views = await asyncio.gather(*(stack.ended(task, timeout=60) for task in stops))
    assert {view.status for view in views} == {TaskStatus.CANCELLED}
    assert {view.workspace and view.workspace.status for view in views} == {WorkspaceStatus.REMOVED}
    assert [stops[view.id] for view in views if view.result] == [
        "container not removed",
        "session accepted",
        "result kept",
    ]
    assert in_home(home) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
@pytest.mark.usefixtures("leaves_no_container")
async def test_a_daemon_that_dies_while_containers_are_made_makes_one_of_each(
    stack: Stack, daemon: Daemon, container_env: dict[str, str], tmp_path: Path
) -> None:
    """S22: what it had made before is there when it is back, and is adopted; what ran is told to have ended."""
    home = tmp_path / "home"
    stops = {unique("t"): point for point in POINTS if point.startswith("container ")}
    template = stack.template(backend="container", container={"image": IMAGE})
    async with stack.worker(HOST, home, stops=stops, **container_env) as worker:
        for task in stops:
            await stack.submit(f"echo {task} >> ran", id=task, template=template)
        await worker.said("^stopped: ", times=len(stops), timeout=60)
        await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        for task in stops:
            (home / f"{task}.go").write_text("go on\n")
        await stack.activity_attempt(next(iter(stops)), "provision_workspace", 2)
        await asyncio.to_thread(daemon.start)
        views = await asyncio.gather(*(stack.ended(task, timeout=60) for task in stops))
    for view in views:
        if stops[view.id] == "container started, not known":  # it ran, and ended with its daemon
            assert view.status is TaskStatus.FAILED
            assert "The workspace ended by itself: its container exited with " in (view.error or "")
        else:
            assert view.status is TaskStatus.COMPLETED, view.error
            assert (await stack.user.get(f"/api/tasks/{view.id}/diff")).text.count(f"+{view.id}\n") == 1
    assert in_home(home) == []


async def test_tasks_whose_calls_block_hold_up_no_other(stack: Stack, tmp_path: Path) -> None:
    """As many as asyncio would have threads for, on this machine, are in the middle of a call that does not return."""
    home = tmp_path / "home"
    blocked = [unique("t") for _ in range(min(32, (os.cpu_count() or 1) + 4))]
    async with stack.worker(HOST, home, stops=dict.fromkeys(blocked, "agent not started")) as worker:
        for task in blocked:
            await stack.submit("true", id=task)
        await worker.said("^stopped: ", times=len(blocked))
        await stack.completed(await stack.submit("true"))
        for task in blocked:
            (home / f"{task}.go").write_text("go on\n")
        for task in blocked:
            await stack.completed(task)


async def test_the_deadline_of_ready_holds_while_the_worker_changes(stack: Stack, gate: Gate, tmp_path: Path) -> None:
    """S18: the timer is Temporal's, and a worker that comes later acts on it at most 5 s late."""
    template = stack.template(
        backend="local",
        readiness="callback",
        setup=[f"read line < {gate}"],
        runtime_config={"provision_timeout_seconds": 5},
    )
    home = tmp_path / "home"
    async with stack.worker(HOST, home) as worker:
        task = await stack.submit("true", template=template)
        deadline = (await stack.waiting(task)).until
        await worker.kill()
    async with stack.worker(HOST, home):
        view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.TIMED_OUT
    assert deadline is not None
    assert view.finished_at is not None
    assert timedelta() <= view.finished_at - deadline <= timedelta(seconds=5)


async def test_a_probe_is_taken_up_again_when_its_worker_dies(stack: Stack, gate: Gate, tmp_path: Path) -> None:
    """S18, S21: the workspace's callbacks reach nobody, so only the probe can find that it is ready."""
    template = stack.template(backend="local", readiness="probe", setup=[f"read line < {gate}"])
    home = tmp_path / "home"
    async with Door(stack.url) as door:
        async with stack.worker(HOST, home, TASKRUNNER_PUBLIC_URL=door.url) as worker:
            task = await stack.submit("echo ran", template=template)
            assert (await stack.waiting(task)).step is TaskStep.WAITING_FOR_READY
            await stack.activity_attempt(task, "probe_workspace", 1)
            await worker.kill()
        async with stack.worker(HOST, home, TASKRUNNER_PUBLIC_URL=door.url):
            await stack.activity_attempt(task, "probe_workspace", 2)
            gate.open()
            await stack.at_step(task, TaskStep.SESSION_RUNNING)
            assert await stack.signals(task) == []
            await door.open()
            view = await stack.completed(task)
    assert await stack.output(task) == "ran\n"
    assert view.provision_timeout_seconds == 120
    assert view.provision_timeout_rule == "default for probe readiness"


@pytest.mark.parametrize("point", ["session accepted", "session recorded", None])
async def test_an_agent_that_dies_while_no_worker_is_there_is_noticed_by_the_next(
    stack: Stack, gate: Gate, repository: Path, tmp_path: Path, point: str | None
) -> None:
    """S28: its end is found at the start of the watcher; what it had changed is kept."""
    home, task = tmp_path / "home", unique("t")
    async with stack.worker(HOST, home, stops={task: point} if point else None) as worker:
        prompt = f"echo half > done; echo said; read line < {gate}"
        await stack.submit(prompt, id=task, repository=(repository, HOST))
        if point:
            await worker.said("^stopped: ")
        view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
        await worker.kill()
    kill_agent(view)
    async with stack.worker(HOST, home):
        view = await stack.ended(task)
        assert not folder_of(home, view).exists()
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert view.error
    assert files_of(repository, f"taskrunner/{task}")["done"] == "half"
