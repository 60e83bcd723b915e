"""Names on the wire: ids, task queues, workflow types, signals and what is derived from ids."""

import re
import secrets
import uuid
from typing import Annotated

from pydantic import StringConstraints

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
"""Ids of tasks, workspaces and sessions; safe as a file name, a branch name, a container name and a DNS label."""

HOST_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Ids of hosts, which are part of the names of task queues."""

ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""Names of environment variables."""

PATH_PATTERN = r"^/[^\x00]*$"
"""Absolute paths."""

REF_PATTERN = r"^[^-\x00\s][^\x00\s]*$"
"""Branches, tags and commits: what git cannot take for an option."""

IMAGE_PATTERN = r"^[^\s-]\S*$"
"""Names of container images: what Docker cannot take for an option, and otherwise judges itself."""

MEMORY_PATTERN = r"^[1-9][0-9]{0,18}[bkmgBKMG]?$"
"""Amounts of memory as Docker writes them."""

NETWORK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names of Docker's networks."""

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]

SERVICE = "taskrunner"
"""By what ``GET /healthz`` of the API tells the command line that it is ours."""

TASK_QUEUE = "taskrunner"
"""Workflows, and activities that any worker can run."""

TASK_RUNNER = "TaskRunner"
"""Workflow type of one task."""

WORKSPACE_READY = "workspace_ready"
PROVISIONING_FAILED = "provisioning_failed"
SESSION_FINISHED = "session_finished"
WORKSPACE_LOST = "workspace_lost"
STATUS_QUERY = "status"

COMPUTE_MARKER = "TASKRUNNER_COMPUTE"
"""Environment variable that every process of a workspace carries: its value is the compute's name.

It is to a process what a label is to a container: proof of what it belongs to, there before its pid is known.
"""

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_CALLBACK_NAMESPACE = uuid.UUID("6f0d1c35-3c55-5d2c-9a53-7f2f6ab8b0c1")


def random_id(kind: str, characters: int = 8) -> str:
    """Return a new id: ``kind`` (``t`` of a task, ``w`` of a workspace), a hyphen, and 5 random bits a character."""
    return f"{kind}-{''.join(secrets.choice(_ID_ALPHABET) for _ in range(characters))}"


def is_id(value: str) -> bool:
    """Tell whether ``value`` may name a task, a workspace or a session."""
    return re.fullmatch(ID_PATTERN, value) is not None


def host_task_queue(host_id: str) -> str:
    """Return the queue of the activities that only the worker on ``host_id`` can run."""
    return f"taskrunner-host-{host_id}"


def task_workflow_id(task_id: str) -> str:
    """Return the workflow id of a task."""
    return f"task-{task_id}"


def compute_name(workspace_id: str, attempt: int) -> str:
    """Return the name of one attempt's compute (63 characters at most for an attempt below 10,000)."""
    return f"tr-{workspace_id}-{attempt}"


def result_branch(task_id: str) -> str:
    """Return the branch that keeps what a task's agent changed."""
    return f"taskrunner/{task_id}"


def session_id(workspace_id: str, attempt: int, turn: int) -> str:
    """Return the id of a session: the same workspace, attempt and turn always give the same one.

    A workspace belongs to one task at a time, so this is one session per task, attempt and turn.
    """
    name = uuid.uuid5(_CALLBACK_NAMESPACE, f"session/{workspace_id}/{attempt}/{turn}")
    return f"s-{name.hex[:24]}-{turn}"


def is_session_of(session: str, workspace_id: str, attempt: int) -> bool:
    """Tell whether ``session`` is the id of a session of that attempt, whatever its turn. Needs no look-up."""
    turn = re.fullmatch(r"s-[0-9a-f]{24}-([1-9][0-9]{0,5})", session)
    return turn is not None and session == session_id(workspace_id, attempt, int(turn[1]))


def callback_request_id(workspace_id: str, attempt: int, signal: str, session: str = "") -> str:
    """Return the request id under which a callback is signalled: repeats carry the same one.

    Temporal drops a signal whose request id the same run has seen, before it reaches the history.
    """
    return str(uuid.uuid5(_CALLBACK_NAMESPACE, f"{workspace_id}/{attempt}/{signal}/{session}"))
