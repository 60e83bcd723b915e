"""What can go wrong with a container during its task: told clearly and in time, and nothing of it is left."""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from messages.errors import ErrorType
from messages.names import compute_name
from messages.statuses import (
    EventKind,
    FailureSource,
    SessionStatus,
    TaskStatus,
    TaskStep,
    Verdict,
    WorkspaceStatus,
)
from messages.views import TaskView
from tests.e2e.test_kept_result import ENDS
from tests.support.docker import BARE_SERVER, IMAGE, TOLD, Daemon, build_image, recorded, tell
from tests.support.git_repositories import files_of, git, make_dirty, snapshot
from tests.support.stack import Stack, folder_of, kill_agent, unique

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("worker", "leaves_no_container")]

HOST = "container-host"
SOON_SECONDS = 5.0
"""Within this an end that is announced has failed its task; its own timeouts are 10 minutes and more."""


@pytest.fixture(scope="module")
def worker_env(container_env: dict[str, str]) -> dict[str, str]:
    return container_env


def template(stack: Stack, image: str = IMAGE, container: dict[str, Any] | None = None, **content: Any) -> str:
    """Add a template of a container and return its name."""
    content = {"heartbeat_interval": "1s", **content}
    return stack.template(backend="container", container={"image": image, **(container or {})}, **content)


async def call_back(stack: Stack, view: TaskView, path: str, times: int = 1) -> list[dict[str, Any]]:
    """Send a callback of the task's workspace so many times, and return the answers."""
    answers = [await stack.call_back(view, path) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


async def count(stack: Stack, task: str, kind: EventKind) -> int:
    return [event.kind for event in await stack.events(task)].count(kind)


BARE = {"container": {"workspace_agent": "none", "port": 8080}, "agent": {"kind": "harnessd"}}
NEVER_READY: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "setup goes on": (["VOLUME /data"], {"setup": ["sleep 600"]}, "still booting: setup[0]"),
    "nobody listens": (['CMD ["sleep", "600"]'], {"container": {"workspace_agent": "image"}}, "does not answer: "),
    "application is not there": ([BARE_SERVER], BARE, "answered 503 starting"),
}


@pytest.mark.parametrize("case", NEVER_READY)
async def test_one_that_never_becomes_ready_fails_at_its_deadline(
    stack: Stack, daemon: Daemon, home: Path, case: str
) -> None:
    """S08, S09, S15: not before and at most 5 s after, whatever runs and listens; the error says what there is to say.

    Its volumes go too.
    """
    lines, content, last_error = NEVER_READY[case]
    image = build_image(daemon, *lines)
    container = content.get("container")
    rest = {name: value for name, value in content.items() if name != "container"}
    name = template(stack, image, container, runtime_config={"provision_timeout_seconds": 3}, **rest)
    task = await stack.submit("echo never", template=name)
    deadline = (await stack.waiting(task)).until
    assert deadline is not None
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.finished_at is not None
    assert timedelta() <= view.finished_at - deadline < timedelta(seconds=5)
    assert view.error is not None
    assert view.error.startswith(f"container workspace {view.workspace_id} never became ready: ")
    assert last_error in view.error
    failure = view.failure
    assert failure is not None
    assert (failure.source, failure.error) == (FailureSource.PROVISION_TIMEOUT, view.error)
    assert (failure.backend, failure.workspace_id) == (view.backend, view.workspace_id)
    assert (failure.timeout_secs, failure.attempt) == (3, 1)
    assert view.workspace is not None
    assert (view.workspace.verdict, view.workspace.status) == (Verdict.TIMED_OUT, WorkspaceStatus.REMOVED)
    assert view.session is None
    assert not folder_of(home, view).exists()
    assert await count(stack, task, EventKind.WORKSPACE_PROVISION_FAILED) == 1

    answers = await call_back(stack, view, "ready")
    assert answers == [{"success": False, "reason": "workspace_not_running"}]
    assert await stack.view(task) == view, "S07: nothing comes back to life"


@contextmanager
def firewall(daemon: Daemon, url: str) -> Iterator[None]:
    """Drop what containers send to ``url``, as a firewall that nobody has told of them."""
    port = url.rpartition(":")[2]
    rule = ["INPUT", "-i", daemon.bridge, "-p", "tcp", "--dport", port, "-j", "DROP"]
    subprocess.run(["iptables", "--wait", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "--wait", "-D", *rule], check=True)


async def test_one_whose_callback_is_lost_is_found_ready_at_the_deadline(
    stack: Stack, daemon: Daemon, container_env: dict[str, str], home: Path
) -> None:
    """S10: the API listens, and everybody reaches it but the container."""
    name = template(stack, runtime_config={"provision_timeout_seconds": 2})
    with firewall(daemon, container_env["TASKRUNNER_PUBLIC_URL"]):
        task = await stack.submit(f"echo hello; {TOLD}", template=name)
        deadline = (await stack.waiting(task)).until
        view = await stack.until(task, lambda view: view.session and view.session.status is SessionStatus.RUNNING)
        assert deadline is not None
        assert view.session is not None
        assert view.session.started_at >= deadline
        assert await stack.signals(task) == []
        assert "TIMER_FIRED" in await stack.history(task)
    await tell(daemon, compute_name(view.workspace_id, 1))
    view = await stack.completed(task, timeout=60)
    assert await stack.output(task) == "hello\n"
    assert view.workspace is not None
    assert view.workspace.verdict is Verdict.READY
    assert view.failure is None
    assert not folder_of(home, view).exists()


async def test_a_setup_that_fails_fails_the_task_at_once(stack: Stack, home: Path) -> None:
    """S04, S05: with its message and the tail of its log; repeats of the callback change nothing."""
    name = template(stack, setup=["echo no key; echo for the database; exit 4"])
    task = await stack.submit("true", template=name)
    view = await stack.ended(task)
    assert view.status is TaskStatus.FAILED
    assert view.failure is not None
    assert view.failure.source is FailureSource.BOOTSTRAP
    assert "setup[0]" in view.failure.error
    assert "for the database" in view.failure.detail
    assert view.finished_at is not None
    failed_at = next(event.at for event in await stack.events(task) if event.current == Verdict.FAILED)
    assert view.finished_at - failed_at < timedelta(seconds=2)
    assert not folder_of(home, view).exists()

    assert await call_back(stack, view, "provisioning-failed", times=5) == [{"success": True}] * 5
    assert await stack.view(task) == view
    assert await count(stack, task, EventKind.WORKSPACE_PROVISION_FAILED) == 1


async def test_a_failure_that_is_told_after_ready_changes_nothing(stack: Stack, daemon: Daemon) -> None:
    """S05, S20: the session goes on; and the same request again is the same task, in the same container."""
    task = unique("t")
    name = template(stack)
    request = {"prompt": f"echo hello; {TOLD}", "id": task, "template": name}
    with recorded(daemon) as counted:
        answers = await asyncio.gather(*(stack.user.post("/api/tasks", json=request) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [201]
        stack.tasks.append(task)
        view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
        refused = {"success": False, "reason": "workspace_not_creating"}
        assert await call_back(stack, view, "provisioning-failed", times=5) == [refused] * 5
        await tell(daemon, compute_name(view.workspace_id, 1))
        view = await stack.completed(task)
    assert await stack.output(task) == "hello\n"
    assert view.failure is None
    assert dict(counted) == {(what, compute_name(view.workspace_id, 1)): 1 for what in ("create", "start", "destroy")}


async def test_one_that_ends_while_it_is_waited_for_fails_with_the_end_of_its_log(stack: Stack, daemon: Daemon) -> None:
    """S14, S39: at once, with 8 KiB at most."""
    chatty = f"{TOLD}; seq 100000; echo no key found; exit 3"
    image = build_image(daemon, f"CMD {json.dumps(['/bin/sh', '-c', chatty])}")
    task = await stack.submit("true", template=template(stack, image, {"workspace_agent": "image"}))
    await stack.waiting(task)
    told_at = time.monotonic()
    await tell(daemon, compute_name((await stack.view(task)).workspace_id, 1))
    view = await stack.ended(task)
    assert time.monotonic() - told_at < SOON_SECONDS
    assert view.status is TaskStatus.FAILED
    assert view.failure is not None
    assert view.failure.source is FailureSource.EXIT
    assert "its container exited with 3" in view.failure.error
    assert view.failure.detail.endswith("no key found\n")
    assert 1000 < len(view.failure.detail.encode()) <= 8192
    assert view.session is None


async def running(stack: Stack, prompt: str, repository: Path, **request: Any) -> TaskView:
    """Return a task whose session has said something."""
    task = await stack.submit(prompt, template=template(stack), repository=(repository, HOST), **request)
    return await stack.until(task, lambda view: view.session and view.session.output_bytes)


async def interrupted(stack: Stack, task: str, repository: Path, home: Path) -> TaskView:
    """Return the task as it ended, with what it had done kept, and nothing else left."""
    view = await stack.ended(task, timeout=60)
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert await stack.error_type(task) == ErrorType.SESSION_INTERRUPTED
    assert view.workspace is not None
    assert (view.workspace.status, view.workspace.verdict) == (WorkspaceStatus.REMOVED, Verdict.READY)
    assert view.failure is None
    assert await stack.output(task) == "said\n"
    assert (await changed(stack, view, repository))["done"] == "half"
    assert not folder_of(home, view).exists()
    return view


async def changed(stack: Stack, view: TaskView, repository: Path) -> dict[str, str]:
    """Return the files of the task's result, which is in a bundle."""
    bundle = await stack.registry.results.bundle(view.id)
    assert bundle is not None
    assert view.result is not None
    assert view.result.bundle
    file = repository.with_name(f"{view.id}.bundle")
    file.write_bytes(bundle)
    git(repository, "fetch", "-q", str(file), view.result.branch)
    assert git(repository, "rev-parse", "FETCH_HEAD") == view.result.commit
    return files_of(repository, "FETCH_HEAD")


WORK = "echo half > done; echo said; sleep 600"


async def test_one_that_is_paused_is_interrupted_and_cleaned_up(
    stack: Stack, daemon: Daemon, repository: Path, home: Path
) -> None:
    """S28, S44: it has not ended, it only says nothing any more: 3 heartbeats, and a question without an answer."""
    view = await running(stack, WORK, repository)
    paused_at = time.monotonic()
    daemon.client().pause(compute_name(view.workspace_id, 1))
    await stack.at_step(view.id, TaskStep.RELEASING)
    assert 2 < time.monotonic() - paused_at < 15
    view = await interrupted(stack, view.id, repository, home)
    assert view.session is not None
    assert "went silent" in (view.session.error or "")
    assert "its agent does not answer" in (view.error or "")


async def test_a_daemon_that_hangs_hides_no_silence(stack: Stack, daemon: Daemon, repository: Path, home: Path) -> None:
    """S28: its log cannot be had then, and nobody waits for that."""
    view = await running(stack, WORK, repository)
    await asyncio.to_thread(daemon.client().pause, compute_name(view.workspace_id, 1))
    paused_at = time.monotonic()
    with daemon.frozen():
        await stack.until(view.id, lambda view: view.step is TaskStep.RELEASING)
    assert time.monotonic() - paused_at < 15
    await interrupted(stack, view.id, repository, home)


async def test_a_daemon_that_hangs_at_the_deadline_hides_no_error_of_the_last_probe(
    stack: Stack, daemon: Daemon, home: Path
) -> None:
    """S08: whether the container lives cannot be asked then."""
    image = build_image(daemon, 'CMD ["sleep", "600"]')
    limit = {"provision_timeout_seconds": 2}
    name = template(stack, image, {"workspace_agent": "image"}, runtime_config=limit)
    task = await stack.submit("echo never", template=name)
    deadline = (await stack.waiting(task)).until
    with daemon.frozen():
        await stack.at_step(task, TaskStep.RELEASING)
    view = await stack.ended(task)
    assert view.error is not None
    assert f"container workspace {view.workspace_id} never became ready: http://" in view.error
    assert "does not answer: " in view.error
    assert deadline is not None
    released_at = next(step.at for step in view.steps if step.step is TaskStep.RELEASING)
    assert timedelta() <= released_at - deadline < timedelta(seconds=5)
    assert not folder_of(home, view).exists()


async def test_one_whose_agent_is_killed_is_interrupted_at_once(stack: Stack, repository: Path, home: Path) -> None:
    """S28, S44: the daemon says that the container has ended."""
    view = await running(stack, f"setsid sleep 600 & {WORK}", repository)
    killed_at = time.monotonic()
    await asyncio.to_thread(kill_agent, view)
    await stack.at_step(view.id, TaskStep.RELEASING)
    assert time.monotonic() - killed_at < SOON_SECONDS
    view = await interrupted(stack, view.id, repository, home)
    assert "its container exited with 137 (killed by signal 9)" in (view.error or "")


async def test_one_that_is_removed_by_somebody_else_is_interrupted_at_once(
    stack: Stack, daemon: Daemon, repository: Path, home: Path
) -> None:
    """S28: what it had done went with it."""
    view = await running(stack, WORK, repository)
    removed_at = time.monotonic()
    daemon.client().remove_container(compute_name(view.workspace_id, 1), force=True)
    view = await stack.ended(view.id)
    assert time.monotonic() - removed_at < SOON_SECONDS
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert view.session.status is SessionStatus.INTERRUPTED
    assert "The workspace ended by itself: " in (view.error or "")
    assert view.result is None
    assert not folder_of(home, view).exists()


async def test_a_program_that_is_killed_fails_its_session_and_not_its_workspace(stack: Stack) -> None:
    """S28"""
    view = await stack.ended(await stack.submit("echo said; kill -9 $$", template=template(stack)))
    assert view.status is TaskStatus.FAILED
    assert view.session is not None
    assert (view.session.status, view.session.exit_code) == (SessionStatus.FAILED, 137)
    assert view.error == "the session failed: killed by SIGKILL"
    assert await stack.output(view.id) == "said\n"


async def test_a_change_survives_however_its_task_ends_and_no_change_leaves_no_branch(
    stack: Stack, repository: Path
) -> None:
    """S44: in a bundle; the user's checkout is untouched."""
    make_dirty(repository)
    before = snapshot(repository)
    name = template(stack)

    async def carried_out(end: str, work: str) -> TaskView:
        last, status, session = ENDS[end]
        request = {"timeout": "2s"} if end == "timeout" else {}
        prompt = f"{work}; echo said; {last}"
        task = await stack.submit(prompt, template=name, repository=(repository, HOST), **request)
        if end == "cancel":
            await stack.until(task, lambda view: view.session and view.session.output_bytes)
            await stack.cancel(task)
        view = await stack.ended(task, timeout=60)
        assert (view.status, view.session and view.session.status) == (status, session), view.error
        assert await stack.output(task) == "said\n"
        return view

    works = ("echo new > added; rm src/app.py; mkdir deep; ln -s ../added deep/link", "echo x > y.ignored")
    views = await asyncio.gather(*(carried_out(end, work) for end in ENDS for work in works))
    assert snapshot(repository) == before
    for view in views[::2]:
        files = await changed(stack, view, repository)
        assert files == {".gitignore": "*.ignored", "README": "hello", "added": "new", "deep/link": "../added"}
    assert [view.result for view in views[1::2]] == [None] * len(ENDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
async def test_one_whose_daemon_restarts_without_live_restore_is_interrupted(
    stack: Stack, daemon: Daemon, repository: Path, home: Path
) -> None:
    """S28, S44: what it had done is kept."""
    view = await running(stack, WORK, repository)
    await asyncio.to_thread(daemon.stop)
    await asyncio.to_thread(daemon.start)
    view = await interrupted(stack, view.id, repository, home)
    assert "the workspace agent was stopped while the session ran" in (view.error or "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
async def test_tasks_outlive_the_restart_of_a_daemon_with_live_restore(
    stack: Stack, daemon: Daemon, home: Path
) -> None:
    """S21, S26: in good order and by a crash; what was cancelled while it was away goes when it is back."""
    options = ["--live-restore"]
    name = template(stack)
    await asyncio.to_thread(daemon.stop)
    await asyncio.to_thread(daemon.start, *options)
    try:
        tasks = [await stack.submit(f"echo begun; {TOLD}; echo ended", template=name) for _ in range(2)]
        views = [await stack.until(task, lambda view: view.session and view.session.output_bytes) for task in tasks]
        going_on = compute_name(views[0].workspace_id, 1)
        before = daemon.client().inspect_container(going_on)["State"]
        await asyncio.to_thread(daemon.stop)
        await asyncio.to_thread(daemon.start, *options)
        await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        await stack.cancel(tasks[1])
        await stack.at_step(tasks[1], TaskStep.RELEASING)
        await asyncio.to_thread(daemon.start, *options)
        assert (await stack.ended(tasks[1])).status is TaskStatus.CANCELLED
        after = daemon.client().inspect_container(going_on)["State"]
        assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
        await tell(daemon, going_on)
        view = await stack.completed(tasks[0])
    finally:
        await asyncio.to_thread(daemon.stop)
        await asyncio.to_thread(daemon.start)
    assert await stack.output(tasks[0]) == "begun\nended\n"
    assert await count(stack, tasks[0], EventKind.SESSION_STATUS) == 3
    assert not folder_of(home, view).exists()
