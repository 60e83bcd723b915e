"""The contract that every backend keeps."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from activities.errors import BackendUnusable
from messages.activities import WorkspaceHandle
from messages.names import compute_name, is_id
from messages.statuses import BackendKind
from messages.tasks import SavedResult, TaskInput
from messages.templates import HarnessAgent, Template


@dataclass(frozen=True)
class Compute:
    """The identity of one attempt's compute; ids that are none are refused, so its name is safe as a file name.

    ``task_id`` only informs, and is empty where it is not known.
    """

    workspace_id: str
    attempt: int
    task_id: str = ""

    def __post_init__(self) -> None:
        """Refuse ids that are none, before anything is made from them."""
        for value in (self.workspace_id, self.task_id or self.workspace_id):
            if not is_id(value):
                raise ValueError(f"{value!r} is no id: small letters, digits and dashes, 40 at most")
        if self.attempt < 1:
            raise ValueError(f"attempt {self.attempt} is none: they are numbered from 1")

    @property
    def name(self) -> str:
        """The name of the compute at its provider: the proof of ownership, and what makes creating it idempotent."""
        return compute_name(self.workspace_id, self.attempt)


Report = Callable[[str], Awaitable[None]]
"""Takes one sentence for those who follow the task; never fails."""


async def unheard(_: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class WorkspaceSpec:
    """What one attempt's workspace is to be. ``base_commit`` is what ``check`` returned; the token is a secret.

    ``tell`` takes how far a long step is, as often as one likes; ``warn`` what the workspace lacks. ``harness_env`` is
    the secret part of a harness server's environment, which it needs as soon as it is started: it stands in no command
    and stays on no disk.
    """

    compute: Compute
    template: Template
    task: TaskInput
    base_commit: str | None
    task_queue: str
    api_url: str
    callback_token: str = field(repr=False)
    agent_token_sha256: str
    tell: Report = unheard
    warn: Report = unheard
    harness_env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def handle(self, backend: BackendKind, url: str, *, agent: bool = True) -> WorkspaceHandle:
        """Return the handle of what was brought up for this, and answers at ``url``; ``agent``: it is our agent."""
        return WorkspaceHandle(
            workspace_id=self.compute.workspace_id,
            attempt=self.compute.attempt,
            backend=backend,
            name=self.compute.name,
            task_queue=self.task_queue,
            harness_url=url,
            readiness=self.template.effective_readiness,
            agent=agent,
        )

    @property
    def harness_config(self) -> dict[str, Any] | None:
        """What our agent is told of the harness server that it is to start; None where there is none."""
        agent = self.template.agent
        if not isinstance(agent, HarnessAgent) or not agent.command:
            return None
        return {
            "command": list(agent.command),
            "env": agent.full_env,
            "port": agent.port,
            "token_env": agent.token_env,
            "secret_env": sorted(self.harness_env),
        }


@dataclass(frozen=True)
class Inspection:
    """What is there of a compute: whether anything exists, whether it lives, how it ended, its last 8 KiB of log.

    ``exit_code`` is the agent's own: minus the signal's number where one killed it (a session's is 128 + that number),
    None while it lives and where nobody saw its end. A container's is what Docker says.
    ``reason`` says how it ended in the backend's own words, empty where there are none.
    """

    exists: bool
    alive: bool
    exit_code: int | None = None
    log_tail: str = ""
    reason: str = ""

    @property
    def ending(self) -> str:
        """How the workspace ended, in words."""
        if self.reason:
            return self.reason
        if not self.exists:
            return "it does not exist any more"
        if self.exit_code is None:
            return "its agent is not running any more"
        if self.exit_code < 0:
            return f"its agent was killed by signal {-self.exit_code}"
        return f"its agent exited with {self.exit_code}"


@dataclass(frozen=True)
class SavedChange:
    """What a backend saved: the record, the patch (None above 4 MiB), and the git bundle where one was made."""

    result: SavedResult
    patch: bytes | None = field(repr=False)
    bundle: bytes | None = field(repr=False)


class Backend(ABC):
    """One place where workspaces live.

    Every method may be called again at any time, by another process too, after a crash anywhere: it then finds its own
    traces and finishes the work. Two calls for the same compute never work on it at once. Errors are those of
    ``activities.errors``; a missing compute is never one.
    """

    kind: ClassVar[BackendKind]

    @abstractmethod
    async def check(self, task: TaskInput) -> str | None:
        """Check that the task can run here, changing nothing; return the commit it starts from, None without one.

        Raises ``InvalidTask`` or ``BackendUnusable``, whose texts say what to do.
        """

    @abstractmethod
    async def provision(self, spec: WorkspaceSpec) -> WorkspaceHandle:
        """Bring up the compute, or adopt what is there under its name; return as soon as it is asked for.

        The first request to the handle's URL is never refused because the agent is still starting. Whatever this call
        made is gone when it fails or is cancelled. Raises ``ProvisionFailed``.
        """

    @abstractmethod
    async def inspect(self, compute: Compute) -> Inspection:
        """Look at the compute, changing nothing."""

    @abstractmethod
    async def save_result(self, compute: Compute, base: str | None, lost: Report = unheard) -> SavedChange | None:
        """Save what the agent changed since ``base``; None where nothing changed, or nothing is there.

        Stops what runs in the workspace first, so that nothing changes meanwhile. ``lost`` takes what of it cannot be
        saved and goes with the workspace. Raises ``ResultNotSaved``, which keeps the workspace.
        """

    @abstractmethod
    async def destroy(self, compute: Compute) -> None:
        """Remove every trace of the compute, whatever part of it exists; nothing at all is success.

        A result that was saved stays. Raises ``NotRemoved`` (retryable) naming what is left.
        """

    @abstractmethod
    async def list_owned(self) -> list[Compute]:
        """Return every compute of this installation that this backend can reach."""


class Backends:
    """The backends of one host, by kind."""

    def __init__(self, backends: Mapping[BackendKind, Backend]) -> None:
        self._backends = backends

    def of(self, kind: BackendKind) -> Backend:
        """Return the backend of that kind; raise ``BackendUnusable`` naming those that there are."""
        if kind not in self._backends:
            known = ", ".join(sorted(self._backends)) or "none"
            raise BackendUnusable(f"backend {kind.value!r} is not available on this host; available: {known}")
        return self._backends[kind]
