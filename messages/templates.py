"""Templates: what a task runs on, in what, with which agent. Files of them are read by ``api/templates.py``."""

import difflib
import ipaddress
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from messages.durations import Duration
from messages.names import ENV_PATTERN, IMAGE_PATTERN, MEMORY_PATTERN, NETWORK_PATTERN, Id
from messages.numbers import Number, WholeNumber
from messages.statuses import BackendKind, Readiness

EnvName = Annotated[str, StringConstraints(pattern=ENV_PATTERN, max_length=200)]
RESERVED_ENV = "TASKRUNNER_"
"""Variables that begin so tell what a process belongs to, or are ours."""

PROMPT_PLACEHOLDER = "{prompt}"
PORT_PLACEHOLDER = "{port}"

SUPPORTED_BACKENDS = (BackendKind.LOCAL, BackendKind.WORKTREE, BackendKind.CONTAINER)
"""The backends of this release."""


def refuse_reserved(names: Iterable[str], where: str = "") -> None:
    """Raise ``ValueError`` for the first variable that is not taken from anybody; ``where`` begins the text."""
    for name in names:
        if name.startswith(RESERVED_ENV):
            raise ValueError(f"{where}{name} is ours: a variable whose name begins with {RESERVED_ENV} is not taken")


class Manifest(BaseModel):
    """The base of what a template is made of: frozen, and unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in cast("dict[object, object]", data):
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key {key!r}; {hint}")
        return cast("Any", data)


class CommandAgent(Manifest):
    """An agent that is a program: ``command`` is its argv, run in the checkout, never through a shell of ours."""

    kind: Literal["command"] = "command"
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _takes_the_prompt(self) -> Self:
        if not any(PROMPT_PLACEHOLDER in part for part in self.command):
            raise ValueError(f"no part of command holds {PROMPT_PLACEHOLDER}, so the agent would never see its task")
        return self

    @property
    def program(self) -> str:
        """What is started first, which has to be there."""
        return self.command[0]

    def argv(self, prompt: str) -> list[str]:
        """Return the argv for one prompt."""
        return [part.replace(PROMPT_PLACEHOLDER, prompt) for part in self.command]


class HarnessAgent(Manifest):
    """An agent that is a server in the workspace and speaks go-agent-harness's HTTP; a session is one run of it.

    Where the workspace has our agent, that starts ``command`` in the checkout, on a free port of loopback that takes
    the place of ``{port}`` in argv and ``env``; ``port`` is a fixed one instead. ``token_env`` names the variable that
    holds the bearer token of its API.
    """

    kind: Literal["harnessd"]
    command: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    env: dict[EnvName, str] = {}
    port: Annotated[int, Field(ge=1, le=65535), WholeNumber] | None = None
    token_env: EnvName | None = None

    @property
    def program(self) -> str | None:
        """What is started first, which has to be there; None where an image starts it."""
        return self.command[0] if self.command else None

    @property
    def full_env(self) -> dict[str, str]:
        """Its part of the environment. Where to listen it is told as go-agent-harness wants it, unless ``env`` does."""
        return {"HARNESS_ADDR": f"127.0.0.1:{PORT_PLACEHOLDER}", **self.env}


AGENT_PRESETS = {
    "shell": CommandAgent(command=("/bin/sh", "-c", "--", PROMPT_PLACEHOLDER)),
    # https://code.claude.com/docs/en/headless and /en/permission-modes (Claude Code itself refuses this mode to root);
    # that "--" ends its options: https://github.com/anthropics/claude-code/issues/3844
    "claude-code": CommandAgent(
        command=(
            *("claude", "-p", "--permission-mode", "bypassPermissions"),
            *("--verbose", "--output-format", "stream-json", "--", PROMPT_PLACEHOLDER),
        )
    ),
    # https://developers.openai.com/codex/noninteractive (the successor of --full-auto; progress is printed anyhow)
    "codex": CommandAgent(command=("codex", "exec", "--sandbox", "workspace-write", "--", PROMPT_PLACEHOLDER)),
    # https://geminicli.com/docs/cli/headless and /docs/cli/trusted-folders: it refuses every folder that nobody has
    # trusted by hand, yolo or not, and each checkout is a new one
    "gemini": CommandAgent(
        command=(
            *("gemini", "--skip-trust", "--approval-mode=yolo", "--output-format=stream-json"),
            f"--prompt={PROMPT_PLACEHOLDER}",
        )
    ),
    # https://opencode.ai/v1/docs/cli and /v1/docs/permissions; 2.0 takes the same flags, but there --standalone, which
    # 1.x refuses, is needed too, or a service in the background does the work in an environment of its own
    "opencode": CommandAgent(command=("opencode", "run", "--auto", "--", PROMPT_PLACEHOLDER)),
}
"""Agents by name. ``shell``: the prompt is a shell script. The others are run as their own documentation says for runs
that nobody attends: they may do everything that they can in the workspace, and print what they do as they do it."""

INSTALL_COMMANDS = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
    "gemini": "npm install -g @google/gemini-cli",
    "opencode": "npm install -g opencode-ai",
}
"""How the programs of the presets are installed, as the pages above (or their first one) say."""


def how_to_install(program: str, *, image: str | None = None) -> str:
    """Return what the reader can do where ``program``, an agent's, is not found: on a host, or in ``image``."""
    install = INSTALL_COMMANDS.get(program)
    where = "where the worker runs, on the PATH that it was started with, or name its whole path in the template"
    if image is not None:
        where = f"in an image that is built on {image}, and name that one in the template"
    return f"install it ({install}) {where}" if install else f"install it {where}"


def agent_preset(name: str) -> CommandAgent:
    """Return the preset called ``name``; raise ``ValueError`` naming the known ones if there is none."""
    if name not in AGENT_PRESETS:
        raise ValueError(f"unknown agent {name!r}; known: {', '.join(AGENT_PRESETS)}")
    return AGENT_PRESETS[name]


def _read_agent(value: object) -> object:
    if isinstance(value, dict):
        return {"kind": "command", **cast("dict[str, Any]", value)}
    return agent_preset(value) if isinstance(value, str) else value


Agent = Annotated[CommandAgent | HarnessAgent, Field(discriminator="kind"), BeforeValidator(_read_agent)]


class RuntimeConfig(Manifest):
    """What the runtime may take."""

    provision_timeout_seconds: Annotated[int, Field(gt=0, le=7 * 86_400), WholeNumber] | None = None


class WorkspaceAgent(StrEnum):
    """Where a container's workspace agent comes from.

    ``mount``: ours is put into the image, which needs Python 3.9 or newer. ``image``: the image has it and starts it.
    ``none``: the image answers HTTP on ``port`` by itself.
    """

    MOUNT = "mount"
    IMAGE = "image"
    NONE = "none"


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


class ContainerConfig(Manifest):
    """What a workspace on ``container`` is made of, and what it may take.

    cpus: how many. memory: bytes, or with ``k``, ``m``, ``g`` (of 1024). pids: processes and threads.
    network: a Docker network that exists; None is the default bridge. command: in place of the image's own, only where
    no workspace agent of ours is mounted. publish: the address of Docker's machine at which ports are published.
    """

    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=500)]
    cpus: Annotated[float, Field(gt=0, le=1024), Number] | None = None
    memory: Annotated[str, StringConstraints(pattern=MEMORY_PATTERN)] | None = None
    pids: Annotated[int, Field(gt=0, le=4_194_304), WholeNumber] = 4096
    network: Annotated[str, StringConstraints(pattern=NETWORK_PATTERN, max_length=200)] | None = None
    workspace_agent: WorkspaceAgent = WorkspaceAgent.MOUNT
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)] | None = None
    port: Annotated[int, Field(gt=0, lt=65536), WholeNumber] | None = None
    publish: Annotated[str, AfterValidator(_address)] = "127.0.0.1"

    @model_validator(mode="before")
    @classmethod
    def _memory_as_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and type(memory := cast("dict[str, Any]", data).get("memory")) is int:
            return {**cast("dict[str, Any]", data), "memory": str(memory)}
        return cast("Any", data)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.workspace_agent is WorkspaceAgent.MOUNT and self.command:
            raise ValueError("command cannot be set where our agent is mounted, because that is what runs then")
        if (self.workspace_agent is WorkspaceAgent.NONE) != (self.port is not None):
            raise ValueError("port is where an image with workspace_agent: none answers HTTP: give both or neither")
        if self.network in {"host", "none"}:
            raise ValueError(
                f"network {self.network!r} publishes no port; leave it out, or make one: docker network create"
            )
        return self


class Template(Manifest):
    """A named manifest; every task runs from one."""

    name: Id
    backend: BackendKind
    agent: Agent = AGENT_PRESETS["shell"]
    runtime: Id | None = None
    required_env: tuple[EnvName, ...] = ()
    env: dict[EnvName, str] = {}
    setup: tuple[str, ...] = ()
    readiness: Readiness | None = None
    runtime_config: RuntimeConfig = RuntimeConfig()
    session_timeout: Duration = timedelta(hours=2)
    heartbeat_interval: Duration = timedelta(seconds=15)
    push: bool = False
    container: ContainerConfig | None = None

    @field_validator("backend", mode="before")
    @classmethod
    def _is_a_backend(cls, value: object) -> object:
        if value not in tuple(BackendKind):  # pydantic would name those of later releases too
            raise ValueError(f"has to be one of: {', '.join(SUPPORTED_BACKENDS)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.backend not in SUPPORTED_BACKENDS:
            known = ", ".join(SUPPORTED_BACKENDS)
            raise ValueError(f"backend {self.backend.value!r} is not available in this release; use one of: {known}")
        if self.backend is BackendKind.CONTAINER:
            if self.container is None:
                raise ValueError("backend container needs the key container with an image: container: {image: …}")
            if self.readiness is Readiness.IMMEDIATE:
                raise ValueError("readiness 'immediate' is not for containers, which take a while; use callback")
        if self.setup and self.readiness is Readiness.IMMEDIATE:
            raise ValueError(
                "setup needs readiness: callback or probe: an immediate workspace is used before setup has run"
            )
        if self.is_bare and (not isinstance(self.agent, HarnessAgent) or self.setup):
            raise ValueError("an image without our agent needs agent: {kind: harnessd}, and takes no setup")
        if self.is_bare and self.readiness is Readiness.CALLBACK:
            raise ValueError("an image without our agent needs readiness: probe, because nothing in it knows of us")
        if isinstance(self.agent, HarnessAgent):
            self._fits_a_harness(self.agent)
        if self.session_timeout <= timedelta(0) or self.heartbeat_interval < timedelta(seconds=1):
            raise ValueError("session_timeout must be positive and heartbeat_interval at least 1s")
        return self

    def _fits_a_harness(self, agent: HarnessAgent) -> None:
        if self.is_bare and agent.command:
            raise ValueError("agent: without our agent in the image nobody could start command: the image has to")
        if lost := self.nobody_could_give(self.required_env):
            raise ValueError(
                f"required_env: without our agent in the image nobody could give {', '.join(lost)} to what runs there;"
                " only the variable that token_env names is of use"
            )
        if not self.is_bare and not agent.command:
            raise ValueError("agent: a harnessd needs the command that starts it")
        if self.readiness is Readiness.IMMEDIATE:
            raise ValueError("a harnessd needs readiness: callback or probe: its server takes its time to come up")
        if agent.token_env is not None and agent.token_env not in self.required_env:
            raise ValueError(f"agent: token_env {agent.token_env!r} has to be one of required_env")

    def check_as_written(self) -> None:
        """Raise ``ValueError`` for what is refused to whoever writes a template, though stored tasks may hold it.

        Those of 0.1.0 do, whose templates could say it; a validator would make them unreadable.
        """
        refuse_reserved(self.env, "env: ")
        if isinstance(self.agent, HarnessAgent):
            refuse_reserved(self.agent.env, "agent.env: ")
        for number, command in enumerate(self.setup, 1):
            if not command.strip():
                raise ValueError(f"setup: command {number} is blank; leave it out")

    def nobody_could_give(self, names: Iterable[str]) -> list[str]:
        """Return which of these secret variables what runs there could not be given: without our agent, all but one."""
        if not self.is_bare or not isinstance(self.agent, HarnessAgent):
            return []
        return sorted(set(names) - {self.agent.token_env})

    @property
    def is_bare(self) -> bool:
        """Whether the workspace is an image without our agent."""
        section = self.container if self.backend is BackendKind.CONTAINER else None
        return section is not None and section.workspace_agent is WorkspaceAgent.NONE

    @property
    def effective_readiness(self) -> Readiness:
        """How readiness is learned: as said, else by what there is.

        ``callback`` where setup or a harness has to run first and from containers (``probe`` where no agent of ours is
        in them), else ``immediate``.
        """
        if self.readiness is not None:
            return self.readiness
        if self.backend is BackendKind.CONTAINER:
            return Readiness.PROBE if self.is_bare else Readiness.CALLBACK
        must_run_first = self.setup or isinstance(self.agent, HarnessAgent)
        return Readiness.CALLBACK if must_run_first else Readiness.IMMEDIATE
