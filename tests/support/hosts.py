"""What tests of the host backends need: tasks, specs, and a backend whose agents call a real (recording) API."""

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from activities.backends.contract import Compute, WorkspaceSpec
from activities.backends.host import HostBackend
from activities.backends.local import LocalBackend
from activities.backends.worktree import WorktreeBackend
from activities.processes import find_marked
from messages.activities import AttemptRequest, Preflight
from messages.names import COMPUTE_MARKER, host_task_queue
from messages.statuses import BackendKind
from messages.tasks import Repository, TaskInput
from messages.templates import Template
from tests.support.agent_process import TOKEN

HOST = "host-a"
BACKENDS: Mapping[BackendKind, type[HostBackend]] = {
    BackendKind.LOCAL: LocalBackend,
    BackendKind.WORKTREE: WorktreeBackend,
}


def make_task(
    kind: BackendKind,
    repository: Path | None = None,
    *,
    url: str | None = None,
    prompt: str = "true",
    ref: str | None = None,
    **template: Any,
) -> TaskInput:
    """Return a task with ids of its own, on a repository by path or by URL, or none."""
    unique = uuid.uuid4().hex[:10]
    return TaskInput(
        task_id=f"t-{unique}",
        workspace_id=f"w-{unique}",
        prompt=prompt,
        template=Template(name=kind.value, backend=kind, **template),
        repository=Repository(path=str(repository) if repository else None, url=url) if repository or url else None,
        ref=ref,
    )


def make_spec(
    task: TaskInput, base: str | None, *, api_url: str = "http://127.0.0.1:9", attempt: int = 1
) -> WorkspaceSpec:
    """Return the spec of a task's attempt; its agent accepts ``TOKEN``."""
    return WorkspaceSpec(
        compute=Compute(workspace_id=task.workspace_id, attempt=attempt, task_id=task.task_id),
        template=task.template,
        task=task,
        base_commit=base,
        task_queue=host_task_queue(HOST),
        api_url=api_url,
        callback_token="a-callback-token",
        agent_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
    )


def make_attempt(task: TaskInput, base: str | None = None, attempt: int = 1) -> AttemptRequest:
    """Return the input of ``provision_workspace``."""
    preflight = Preflight(
        host_id=HOST,
        task_queue=host_task_queue(HOST),
        provision_timeout_seconds=600,
        provision_timeout_rule="default",
        base_commit=base,
    )
    return AttemptRequest(task=task, attempt=attempt, preflight=preflight)


async def yes() -> bool:
    """Say that a wait goes on being worth it."""
    return True


def agents_of(compute: Compute) -> list[int]:
    """Return the pids of the workspace agents of ``compute`` (sessions and their children left out)."""
    found: list[int] = []
    for process in find_marked(compute.name):
        argv = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        if b"serve" in argv:
            found.append(process.pid)
    return found


def marked_processes() -> dict[int, str]:
    """Return every process that belongs to any compute."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            for part in environ.split(b"\0"):
                if part.startswith(f"{COMPUTE_MARKER}=".encode()):
                    found[int(entry.name)] = part.decode().partition("=")[2]
    return found
