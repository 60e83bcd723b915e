"""A task: the request, the workflow's input and result, and what it decides on the way."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from messages.base import Message
from messages.durations import Duration
from messages.errors import ErrorType
from messages.names import HOST_PATTERN, PATH_PATTERN, REF_PATTERN, Id
from messages.repositories import RepositoryAddress, parse_repository_url
from messages.signals import SessionFinished
from messages.statuses import BackendKind, FailureSource, TaskStatus, TaskStep, Verdict
from messages.templates import EnvName, Template, refuse_reserved

MAX_PROMPT_BYTES = 100_000
"""A prompt travels as one argument of a command, which Linux limits to 128 KiB."""

MAX_REF_CHARS = 250

MAX_ENV_BYTES = 64 * 1024
"""Of all values together; with the prompt they fit into one request to the workspace agent."""


class Repository(Message):
    """Where the code comes from: a path on a host, or a URL. ``host`` is a worker's host id."""

    path: Annotated[str, StringConstraints(max_length=4000, pattern=PATH_PATTERN)] | None = None
    host: Annotated[str, StringConstraints(pattern=HOST_PATTERN)] | None = None
    url: RepositoryAddress | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("has to have either a path (absolute, on a host) or a url")
        return self

    @property
    def is_on_host(self) -> bool:
        """Whether only one host has it: as a path, or by a ``file://`` URL."""
        return self.url is None or parse_repository_url(self.url).scheme == "file"


class TaskRequest(Message, extra="forbid"):
    """The body of ``POST /api/tasks``. What is left out comes from the template. The values of ``env`` are secrets.

    ``template`` defaults to the built-in one of the backend, the backend to ``worktree`` with a repository and to
    ``local`` without.
    """

    id: Id | None = None
    prompt: Annotated[str, StringConstraints(min_length=1)]
    template: str | None = None
    backend: BackendKind | None = None
    agent: str | None = None
    repository: Repository | None = None
    ref: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REF_CHARS, pattern=REF_PATTERN)] | None = None
    timeout: Duration | None = None
    env: dict[EnvName, SecretStr] = Field(default={}, max_length=100)

    @field_validator("prompt")
    @classmethod
    def _prompt_fits(cls, prompt: str) -> str:
        if len(prompt.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
            raise ValueError(f"is longer than {MAX_PROMPT_BYTES} bytes; put it into a file of the repository")
        if "\0" in prompt or not prompt.strip():
            raise ValueError("is blank or holds a NUL character")
        return prompt

    @field_validator("env")
    @classmethod
    def _env_is_usable(cls, env: dict[str, SecretStr]) -> dict[str, SecretStr]:
        refuse_reserved(env)
        size = 0
        for name, value in env.items():
            text = value.get_secret_value()
            if not text or "\0" in text:
                raise ValueError(f"the value of {name} is empty or holds a NUL character")
            size += len(text.encode())
        if size > MAX_ENV_BYTES:
            raise ValueError(f"the values are longer than {MAX_ENV_BYTES} bytes together; give a file's path")
        return env

    def env_values(self) -> dict[str, str]:
        """Return the values of ``env``: for whoever sends or seals them, never to be shown."""
        return {name: value.get_secret_value() for name, value in self.env.items()}

    def body(self) -> dict[str, Any]:
        """Return the JSON of the request as it is sent, with the values of ``env``, which every other dump masks."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"env"})
        return {**content, "env": self.env_values()} if self.env else content


WORKFLOW_REVISION = 1
"""The newest order of steps, which every new task gets. 1: short steps are tried by the workflow's own worker first.

Workers that do not know a revision have to be gone when an API first asks for it (docs/operations/deployment.md).
"""


class TaskInput(Message):
    """The input of a TaskRunner workflow: the request, with everything resolved that does not need a worker.

    ``env_names`` names the variables that were submitted with it. Their values are in the registry, sealed.
    ``revision``: the order of steps that its workflow keeps to from start to end, whatever is released meanwhile; 0
    for what was submitted before there were several, else :data:`WORKFLOW_REVISION` of the API that took the task.
    """

    task_id: Id
    workspace_id: Id
    prompt: str
    template: Template
    repository: Repository | None = None
    ref: str | None = None
    env_names: tuple[str, ...] = ()
    revision: int = 0

    @property
    def preflight_is_short(self) -> bool:
        """Whether the preflight asks nobody that may take long, as the host of a repository's URL may."""
        return self.revision >= 1 and not (self.repository and self.repository.url)

    @property
    def first_step_to_be_stuck_in(self) -> TaskStep:
        """What the search attribute ``TaskStep`` says of a task that begins: a short preflight is never seen there."""
        return TaskStep.PROVISIONING if self.preflight_is_short else TaskStep.PREFLIGHT


class ProvisionFailure(Message):
    """Why an attempt never became ready. ``error`` is never empty, ``detail`` at most 8 KiB, neither holds a secret."""

    source: FailureSource
    backend: BackendKind
    workspace_id: Id
    attempt: int
    timeout_secs: int | None = None
    error: Annotated[str, StringConstraints(min_length=1)]
    detail: str = ""


class FailureDetail(Message):
    """What an activity attaches to the error of an attempt that will never be ready; the error's text says the rest.

    Older activities attached a whole :class:`ProvisionFailure`, which can be read as this.
    """

    source: FailureSource
    detail: str = ""


class SavedResult(Message):
    """Where the change that an agent made is kept.

    ``bundle`` tells that a git bundle stands in the registry. ``pushed_to`` is the URL (without a user) of the remote
    that ``branch`` was pushed to, ``push_error`` why it was not where it should have been.

    Commits are full ids, ``repository_path`` is on the task's host, and a binary file has no lines that count.
    """

    branch: str
    base_commit: str
    commit: str
    files_changed: int
    insertions: int
    deletions: int
    repository_path: str | None = None
    bundle: bool = False
    pushed_to: str | None = None
    push_error: str | None = None


class TaskOutcome(Message):
    """How a task ends, as the workflow decided it. ``error`` is empty only for ``completed``."""

    status: TaskStatus
    error: str = ""
    error_type: ErrorType | None = None
    verdict: Verdict | None = None
    failure: ProvisionFailure | None = None
    session: SessionFinished | None = None


class TaskResult(Message):
    """The result of a completed TaskRunner workflow; ``exit_code`` is its session's."""

    task_id: Id
    exit_code: int | None = None
    summary: str = ""
    result: SavedResult | None = None


class TaskProgress(Message):
    """The answer of the query ``status``."""

    status: TaskStatus
    step: TaskStep
    waiting_for: str
    since: datetime
    until: datetime | None = None
    last_error: str = ""
    workspace_id: Id
    attempt: Annotated[int, Field(ge=1)]
    session_id: Id | None = None
