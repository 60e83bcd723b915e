"""The worker as it is, but for points at which it stops carrying out a task, so that a test can kill it right there.

Started as a program in place of ``taskrunner worker``. ``STOPS`` is JSON: by task id the name of one of ``POINTS``.
At the point it prints ``stopped: <task id>`` and goes on only when the pipe ``<TASKRUNNER_HOME>/<task id>.go`` is
written to. Every agent that is started is noted in the file ``STARTS``, by the name of its compute, and where another
agent of that compute still lives at that moment a line ``<name>:second`` follows.
"""

import asyncio
import functools
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.processes import command_line, find_marked
from messages.names import COMPUTE_MARKER, task_workflow_id

POINTS = {
    "preflight": ("after", "store.tasks:TaskStore.begin"),
    "attempt recorded": ("after", "store.workspaces:WorkspaceStore.begin_attempt"),
    "worktree half made": ("before", "activities.backends.worktree:_move_worktree"),
    "agent not started": ("before", "activities.processes:start"),
    "agent started, not recorded": ("after", "activities.processes:start"),
    "container not created": ("before", "docker.api.container:ContainerApiMixin.create_container"),
    "container created, not known": ("after", "docker.api.container:ContainerApiMixin.create_container"),
    "container not started": ("before", "docker.api.container:ContainerApiMixin.start"),
    "container started, not known": ("after", "docker.api.container:ContainerApiMixin.start"),
    "agent recorded": ("before", "store.workspaces:WorkspaceStore.record_provisioned"),
    "provisioned": ("after", "store.workspaces:WorkspaceStore.record_provisioned"),
    "session not asked for": ("before", "activities.agent_client:AgentClient.create_session"),
    "session accepted": ("after", "activities.agent_client:AgentClient.create_session"),
    "session recorded": ("after", "store.sessions:SessionStore.record_running"),
    "release begun": ("after", "store.workspaces:WorkspaceStore.begin_release"),
    "result kept": (
        "after",
        "activities.backends.host:HostBackend.save_result",
        "activities.backends.container:ContainerBackend.save_result",
    ),
    "result recorded": ("after", "store.results:ResultStore.save"),
    "container not removed": ("before", "docker.api.container:ContainerApiMixin.remove_container"),
    "compute gone": (
        "after",
        "activities.backends.host:HostBackend.destroy",
        "activities.backends.container:ContainerBackend.destroy",
    ),
    "removal recorded": ("after", "store.workspaces:WorkspaceStore.record_removed"),
    "end recorded": ("after", "store.tasks:TaskStore.finish"),
}
POINTS_OF_CONTAINERS = [
    point for point in POINTS if point not in {"worktree half made", "agent not started", "agent started, not recorded"}
]
POINTS_OF_WORKTREES = [point for point in POINTS if not point.startswith("container ")]


def _wrap(target: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = target.partition(":")
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, make(getattr(owner, name)))


def _task() -> str | None:
    return activity.info().workflow_id if activity.in_activity() else None


def _stop_at(point: str, tasks: set[str]) -> None:
    when, *targets = POINTS[point]
    passed: set[str] = set()

    def applies(now: str) -> str | None:
        if now != when or (task := _task()) not in {task_workflow_id(known) for known in tasks} or task in passed:
            return None
        if not activity.info().is_local:  # the first try of a short step: the step itself stops there as well
            passed.add(task)
        return task.removeprefix("task-")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            if task := applies("before"):
                await _wait_async(task)
            result = await original(*args, **kwargs)
            if task := applies("after"):
                await _wait_async(task)
            return result

        @functools.wraps(original)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            assert threading.current_thread() is not threading.main_thread(), f"{point} would stop everything"
            if task := applies("before"):
                _wait(task)
            result = original(*args, **kwargs)
            if task := applies("after"):
                _wait(task)
            return result

        return asynchronous if inspect.iscoroutinefunction(original) else synchronous

    for target in targets:
        _wrap(target, make)


def _wait(task: str) -> None:
    pipe = Path(os.environ["TASKRUNNER_HOME"], f"{task}.go")
    if not pipe.exists():
        os.mkfifo(pipe)
        os.write(1, f"stopped: {task}\n".encode())  # in one piece, whatever other threads write
    with pipe.open() as opened:
        opened.readline()


async def _wait_async(task: str) -> None:
    loop = asyncio.get_running_loop()
    gone_on = loop.create_future()

    def wait() -> None:
        _wait(task)
        loop.call_soon_threadsafe(lambda: gone_on.done() or gone_on.set_result(None))

    threading.Thread(target=wait, daemon=True).start()
    await gone_on


def _note_starts() -> None:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start(*args: Any, **kwargs: Any) -> Any:
            process = original(*args, **kwargs)
            name = kwargs["env"][COMPUTE_MARKER]
            others = [other for other in find_marked(name) if other != process and "serve" in command_line(other)]
            with Path(os.environ["STARTS"]).open("a") as starts:
                starts.write(f"{name}\n" + (f"{name}:second\n" if others else ""))
            return process

        return start

    _wrap("activities.processes:start", make)


def main() -> int:
    _note_starts()
    stops: dict[str, str] = json.loads(os.environ["STOPS"])
    for point in POINTS:
        if tasks := {task for task, where in stops.items() if where == point}:
            _stop_at(point, tasks)
    from cli.main import main as cli

    return cli(["worker"])


if __name__ == "__main__":
    sys.exit(main())
