"""The product's processes on real servers: Temporal, PostgreSQL and the API for a whole run, workers for each test.

A test starts workers, and kills them; see :mod:`tests.support.stopping_worker` for how it meets them at an exact point.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from activities.processes import ProcessId, find_all, identify
from messages.keys import Keyring
from messages.names import COMPUTE_MARKER, compute_name, task_workflow_id
from messages.statuses import TaskStatus, TaskStep
from messages.tokens import mint_callback_token
from messages.views import EventView, TaskView
from store.registry import Registry
from tests.support.cli import ROOT

API_TOKEN = "tr-test-token-0123456789"
CLI = [sys.executable, "-m", "cli.main"]
STOPPING_WORKER = [sys.executable, "-m", "tests.support.stopping_worker"]


def unique(prefix: str) -> str:
    """Return an id that nothing else has."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


class Process:
    """A process of the product whose log is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, argv: Iterable[str], env: Mapping[str, str], cwd: Path) -> "Process":
        """Start it in a session of its own, as a service manager would."""
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            async with self._news:
                self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    @property
    def log(self) -> str:
        return "\n".join(self._lines)

    async def said(self, pattern: str, *, times: int = 1, timeout: float = 30) -> list[re.Match[str]]:
        """Return the first ``times`` matches in its log as soon as they are there."""

        def found() -> list[re.Match[str]]:
            return [match for line in self._lines if (match := re.search(pattern, line))]

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: len(found()) >= times or self._reading.done())
        matches = found()
        assert len(matches) >= times, f"{pattern!r} came {len(matches)} of {times} times in:\n{self.log}"
        return matches[:times]

    async def kill(self) -> None:
        """End it as ``kill -9`` does; return when it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def stop(self) -> None:
        """Ask it to end and see that it does so in good order."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(25):
                code = await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"it did not stop:\n{self.log}") from None
        await self._reading
        assert code == 0, self.log
        assert "Traceback" not in self.log, self.log

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


class Stack:
    """Servers and API that run, and what a test needs to submit tasks and to look at what became of them."""

    def __init__(self, url: str, api: Process, registry: Registry, temporal: Client, keys: Keyring, env: dict[str, str]):
        self.url = url
        self.api = api
        self.registry = registry
        self.temporal = temporal
        self.keys = keys
        self.env = env
        self.templates = Path(env["TASKRUNNER_TEMPLATES"])
        self.tasks: list[str] = []
        self.user = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {API_TOKEN}"}, timeout=30, trust_env=False
        )

    @asynccontextmanager
    async def worker(
        self, host: str, home: Path, *, stops: Mapping[str, str] | None = None, **env: str
    ) -> AsyncGenerator[Process]:
        """A worker of ``host``, stopped at the end unless the test has killed it.

        ``stops``: by task, the point at which the worker stops carrying it out (:mod:`tests.support.stopping_worker`);
        None for the worker as it is installed.
        """
        home.mkdir(exist_ok=True)
        argv = [*CLI, "worker"]
        more = {"TASKRUNNER_HOST_ID": host, "TASKRUNNER_HOME": str(home), **env}
        if stops is not None:
            argv = STOPPING_WORKER
            more |= {"STOPS": json.dumps(stops), "STARTS": str(home / "starts")}
        process = await Process.start(argv, {**self.env, **more}, home)
        try:
            await process.said("is ready; workspaces report to")
            yield process
            if stops is None and process.is_alive:
                await process.stop()
        finally:
            await process.kill()

    def template(self, **content: Any) -> str:
        """Add a template and return its name."""
        name = unique("x")
        (self.templates / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **content}))
        return name

    async def submit(self, prompt: str, **request: Any) -> str:
        """Submit a task and return its id."""
        request.setdefault("id", unique("t"))
        if isinstance(repository := request.get("repository"), tuple):
            request["repository"] = {"path": str(repository[0]), "host": repository[1]}
        answer = await self.user.post("/api/tasks", json={"prompt": prompt, **request})
        assert answer.status_code == 201, answer.text
        self.tasks.append(request["id"])
        return request["id"]

    async def cancel(self, task: str) -> None:
        answer = await self.user.post(f"/api/tasks/{task}/cancel")
        assert answer.status_code == 202, answer.text

    async def view(self, task: str) -> TaskView:
        """Return the task as the API shows it."""
        answer = await self.user.get(f"/api/tasks/{task}")
        assert answer.status_code == 200, answer.text
        return TaskView.model_validate(answer.json())

    async def until(self, task: str, reached: Callable[[TaskView], object], *, timeout: float = 30) -> TaskView:
        """Return the task as soon as its record satisfies ``reached``."""
        view = None
        try:
            async with asyncio.timeout(timeout), self.registry.changes.watch(task) as changed:
                while True:
                    view = await self.registry.tasks.get(task)
                    if view is not None and reached(view):
                        return view
                    await changed.wait()
        except TimeoutError:
            status = f"{view.status} {view.step}" if view else "unknown"
            raise AssertionError(f"after {timeout} s task {task} is {status}:\n{view!r}") from None

    async def at_step(self, task: str, step: TaskStep, *, timeout: float = 30) -> TaskView:
        return await self.until(task, lambda view: view.step is step or view.status.is_final, timeout=timeout)

    async def ended(self, task: str, *, timeout: float = 30) -> TaskView:
        """Return the task when its record is final and its workflow has closed."""
        await self.until(task, lambda view: view.status.is_final, timeout=timeout)
        with suppress(WorkflowFailureError):
            async with asyncio.timeout(timeout):
                await self.workflow(task).result()
        return await self.view(task)

    async def completed(self, task: str, *, timeout: float = 30) -> TaskView:
        view = await self.ended(task, timeout=timeout)
        assert view.status is TaskStatus.COMPLETED, f"{view.status}: {view.error}"
        return view

    async def output(self, task: str) -> str:
        return (await self.user.get(f"/api/tasks/{task}/logs")).text

    async def events(self, task: str) -> list[EventView]:
        return await self.registry.tasks.events(task)

    def workflow(self, task: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(task_workflow_id(task))

    async def history(self, task: str) -> list[str]:
        """Return the types of the events in the task's history."""
        return [
            EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
            async for event in self.workflow(task).fetch_history_events()
        ]

    async def activity_attempt(self, task: str, activity: str, attempt: int, *, timeout: float = 30) -> None:
        """Return when Temporal has begun that attempt of a pending activity (it announces that to nobody: it is asked)."""
        async with asyncio.timeout(timeout):
            while True:
                description = (await self.workflow(task).describe()).raw_description
                for pending in description.pending_activities:
                    if pending.activity_type.name == activity and pending.attempt >= attempt:
                        return
                await asyncio.sleep(0.2)

    async def token(self, view: TaskView) -> str:
        """Return the callback token of the task's attempt."""
        created_at = await self.registry.workspaces.attempt_created_at(view.workspace_id, 1)
        assert isinstance(created_at, datetime)
        return mint_callback_token(
            self.keys,
            workspace_id=view.workspace_id,
            attempt=1,
            workflow_id=view.workflow_id,
            issued_at=created_at,
        )

    async def left_over(self) -> dict[str, list[str]]:
        """Return, by task, the processes that its workspace has left behind."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            if view := await self.registry.tasks.get(task):
                living = await asyncio.to_thread(find_all, compute_name(view.workspace_id, 1))
                if commands := [command_line(process.pid) for process in living]:
                    found[task] = commands
        return found


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def agent_of(view: TaskView) -> ProcessId:
    """Return the workspace agent's process."""
    found = [
        process for process in find_all(compute_name(view.workspace_id, 1)) if " serve --config " in command_line(process.pid)
    ]
    assert len(found) == 1, found
    return found[0]


def kill_agent(view: TaskView) -> None:
    """``kill -9`` the workspace agent."""
    process = agent_of(view)
    assert identify(process.pid) == process
    os.kill(process.pid, signal.SIGKILL)


def folder_of(home: Path, view: TaskView) -> Path:
    """Return the folder of the task's workspace."""
    return home / "workspaces" / compute_name(view.workspace_id, 1)


class Gate:
    """A named pipe at which a program waits, ``read line < gate``, until the test opens it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / unique("gate")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # both ends: opening it never waits

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        os.write(self._fd, b"go on\n")

    def close(self) -> None:
        os.close(self._fd)


def service_environment(**more: str) -> dict[str, str]:
    """Return the environment in which the product's processes are started."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TASKRUNNER_", "TEMPORAL_")) and name not in {"PROVISION_TIMEOUT_SECONDS", COMPUTE_MARKER}
    }
    return {**kept, "PYTHONPATH": str(ROOT), **more}
