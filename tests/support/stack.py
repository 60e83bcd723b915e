"""The product's processes on real servers: Temporal, PostgreSQL and the API for a whole run, workers for each test.

A test starts workers, and kills them; see :mod:`tests.support.stopping_worker` for how it meets them at an exact point.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.processes import ProcessId, find_all, identify
from messages.keys import Keyring
from messages.names import COMPUTE_MARKER, STATUS_QUERY, compute_name, task_workflow_id
from messages.statuses import BackendKind, TaskStatus, TaskStep
from messages.tasks import TaskProgress, TaskResult
from messages.tokens import mint_callback_token
from messages.views import EventView, TaskView
from store.registry import Registry
from tests.support.cli import ROOT
from tests.support.records import rows

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
    async def start(cls, argv: Iterable[str], env: Mapping[str, str]) -> "Process":
        """Start it in a session of its own, as a service manager would."""
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                cwd=ROOT,
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
        # Temporal's SDK logs each activity that fails, as a warning with its traceback.
        assert not re.search(r" (ERROR|CRITICAL) |never retrieved|never awaited", self.log), self.log

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


class Stack:
    """Servers and API that run, and what a test needs to submit tasks and to look at what became of them."""

    def __init__(self, api: Process, registry: Registry, temporal: Client, keys: Keyring, env: dict[str, str]) -> None:
        self.url = url = env["TASKRUNNER_PUBLIC_URL"]
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
        argv = [*CLI, "worker"]
        more = {"TASKRUNNER_HOST_ID": host, "TASKRUNNER_HOME": str(home), **env}
        if stops is not None:
            argv = STOPPING_WORKER
            more |= {"STOPS": json.dumps(stops), "STARTS": str(home / "starts")}
        process = await Process.start(argv, {**self.env, **more})
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
            path, host = cast("tuple[Path, str]", repository)
            request["repository"] = {"path": str(path), "host": host}
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
        return self.temporal.get_workflow_handle(task_workflow_id(task), result_type=TaskResult)

    async def signals(self, task: str) -> list[str]:
        """Return the names of the signals in the task's history."""
        return [
            event.workflow_execution_signaled_event_attributes.signal_name
            async for event in self.workflow(task).fetch_history_events()
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
        ]

    async def waiting(self, task: str, *, timers: int = 1, timeout: float = 30) -> TaskProgress:
        """Return what the workflow says of itself once it has started so many timers (its record is ahead of it)."""
        async with asyncio.timeout(timeout):
            async for event in self.workflow(task).fetch_history_events(wait_new_event=True):
                timers -= event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
                if timers == 0:
                    break
        return await self.workflow(task).query(STATUS_QUERY, result_type=TaskProgress)

    async def scheduled(self, task: str, activity: str, *, timeout: float = 30) -> None:
        """Return when the workflow has asked for that activity."""
        async with asyncio.timeout(timeout):
            async for event in self.workflow(task).fetch_history_events(wait_new_event=True):
                if event.activity_task_scheduled_event_attributes.activity_type.name == activity:
                    return

    async def error_type(self, task: str) -> str | None:
        """Return the type of the error with which the task's workflow failed."""
        with pytest.raises(WorkflowFailureError) as failed:
            await self.workflow(task).result()
        assert isinstance(failed.value.cause, ApplicationError), failed.value.cause
        return failed.value.cause.type

    async def history(self, task: str) -> list[str]:
        """Return the types of the events in the task's history."""
        return [
            EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
            async for event in self.workflow(task).fetch_history_events()
        ]

    async def activity_attempt(self, task: str, activity: str, attempt: int, *, timeout: float = 30) -> None:
        """Return when Temporal has begun that attempt of a pending activity. Nothing announces that: it is asked."""
        async with asyncio.timeout(timeout):
            while True:
                description = (await self.workflow(task).describe()).raw_description
                for pending in description.pending_activities:
                    if pending.activity_type.name == activity and pending.attempt >= attempt:
                        return
                await asyncio.sleep(0.2)

    async def token(self, view: TaskView) -> str:
        """Return the callback token of the task's attempt."""
        attempts = await rows(self.registry, "attempts")
        created_at = next(row["created_at"] for row in attempts if row["workspace_id"] == view.workspace_id)
        assert isinstance(created_at, datetime)
        return mint_callback_token(
            self.keys,
            workspace_id=view.workspace_id,
            attempt=1,
            workflow_id=view.workflow_id,
            issued_at=created_at,
        )

    async def call_back(self, view: TaskView, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send a callback as the task's workspace would, and return the answer."""
        headers = {"Authorization": f"Bearer {await self.token(view)}"}
        return await self.user.post(f"/api/workspaces/{view.workspace_id}/{path}", headers=headers, json=body)

    async def agent_says(self, view: TaskView) -> str:
        """Return what the task's workspace agent says of itself, once it says anything."""
        assert view.workspace is not None
        assert view.workspace.harness_url is not None
        token = self.keys.agent_token(view.workspace_id, 1)
        answer = await self.user.get(
            f"{view.workspace.harness_url}/healthz", headers={"Authorization": f"Bearer {token}"}
        )
        return answer.json()["status"]

    async def left_over(self) -> dict[str, list[str]]:
        """Return, by task, the processes that its workspace has left behind."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            if view := await self.registry.tasks.get(task):
                living = await asyncio.to_thread(find_all, compute_name(view.workspace_id, 1))
                if commands := [command_line(process.pid) for process in living]:
                    found[task] = commands
        return found

    async def clean_up(self) -> None:
        """End what a test that failed has left, so that it fails no other."""
        for task in self.tasks:
            view = await self.registry.tasks.get(task)
            if view is None:
                continue
            if not view.status.is_final:
                with suppress(RPCError):
                    await self.workflow(task).terminate()
            for process in await asyncio.to_thread(find_all, compute_name(view.workspace_id, 1)):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def command_lines() -> list[str]:
    """Return the command of every process of this machine."""
    return [command_line(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def agent_of(view: TaskView) -> ProcessId:
    """Return the workspace agent's process."""
    found = [
        process
        for process in find_all(compute_name(view.workspace_id, 1))
        if " serve --config " in (command := command_line(process.pid)) and " -- " not in command  # a container's init
    ]
    assert len(found) == 1, found
    return found[0]


def kill_agent(view: TaskView) -> None:
    """``kill -9`` the workspace agent."""
    process = agent_of(view)
    assert identify(process.pid) == process
    os.kill(process.pid, signal.SIGKILL)


def folder_of(home: Path, view: TaskView) -> Path:
    """Return the folder of the task's workspace, or what the worker keeps of its container."""
    folder = "containers" if view.backend is BackendKind.CONTAINER else "workspaces"
    return home / folder / compute_name(view.workspace_id, 1)


class Gate:
    """A named pipe at which a program waits, ``read line < gate``, until the test opens it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / unique("gate")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # both ends: opening it never waits

    def __str__(self) -> str:
        return str(self.path)

    def open(self, line: str = "go on") -> None:
        os.write(self._fd, f"{line}\n".encode())

    async def written(self, timeout: float = 30) -> str:
        """Return what a program writes to it."""
        loop = asyncio.get_running_loop()
        is_there = asyncio.Event()
        loop.add_reader(self._fd, is_there.set)
        try:
            async with asyncio.timeout(timeout):
                await is_there.wait()
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, 65536).decode()

    def close(self) -> None:
        os.close(self._fd)


class Door:
    """A way to the API, at an address of this machine, that refuses every connection until it is opened."""

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        self._host, _, port = url.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._bound = socket.socket()
        self._bound.bind((address, 0))
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Door":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        self._bound.close()

    @property
    def url(self) -> str:
        address, port = self._bound.getsockname()
        return f"http://{address}:{port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, sock=self._bound)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


def service_environment(**more: str) -> dict[str, str]:
    """Return the environment in which the product's processes are started."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TASKRUNNER_", "TEMPORAL_"))
        and name not in {"PROVISION_TIMEOUT_SECONDS", COMPUTE_MARKER}
    }
    return {**kept, "PYTHONPATH": str(ROOT), **more}
