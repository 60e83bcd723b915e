"""What a workspace's container is: its labels, its limits, what runs in it, and how to read what Docker says of it."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from activities.backends.contract import Compute, WorkspaceSpec
from messages.names import COMPUTE_MARKER
from messages.templates import PORT_PLACEHOLDER, ContainerConfig, HarnessAgent, Template, WorkspaceAgent

if TYPE_CHECKING:
    from collections.abc import Mapping

INSTALLATION, HOST, WORKSPACE, TASK, ATTEMPT = (
    f"taskrunner.{name}" for name in ("installation", "host", "workspace", "task", "attempt")
)
"""The labels. The workspace's is the proof of ownership within an installation; the task's only informs."""

CHECK = "taskrunner.check"
"""The label of a container that looks how the API is reached; no workspace's has it."""

FOLDER = PurePosixPath("/taskrunner")
"""Where everything of ours is in a container: ``config.json`` (secret), ``agent.pyz``, ``state/`` and ``checkout/``."""
CHECKOUT = FOLDER / "checkout"
AGENT_PORT = 8700
HOST_NAME = "host.docker.internal"
"""By what name a container reaches the machine that it runs on."""

_GIB = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_NOT_RUN = re.compile(r"exec (\S+) failed: (.*)")
_NEVER = "0001-01-01T00:00:00Z"
_LONGEST_HEALTH = 2000


class Ownership(NamedTuple):
    """Whose containers they are, and which worker's host made them."""

    installation_id: str
    host_id: str

    @property
    def labels_of_installation(self) -> list[str]:
        """What every container of the installation carries."""
        return [f"{INSTALLATION}={self.installation_id}"]

    @property
    def labels_of_host(self) -> list[str]:
        """What every container carries that this host's worker has made."""
        return [*self.labels_of_installation, f"{HOST}={self.host_id}"]

    def labels(self, compute: Compute) -> dict[str, str]:
        """Return the labels of a new container."""
        return {
            INSTALLATION: self.installation_id,
            HOST: self.host_id,
            WORKSPACE: compute.workspace_id,
            TASK: compute.task_id,
            ATTEMPT: str(compute.attempt),
        }

    def owns(self, found: Mapping[str, Any], compute: Compute) -> bool:
        """Tell whether a container is this installation's, and this very attempt's."""
        labels: dict[str, str] = found["Config"].get("Labels") or {}
        wanted = (self.installation_id, compute.workspace_id, str(compute.attempt))
        return tuple(labels.get(name) for name in (INSTALLATION, WORKSPACE, ATTEMPT)) == wanted


def section(template: Template) -> ContainerConfig:
    """Return the template's section, which a template on this backend has."""
    assert template.container is not None
    return template.container


def has_agent(container: ContainerConfig) -> bool:
    """Tell whether our agent runs in it."""
    return container.workspace_agent is not WorkspaceAgent.NONE


def port_of(container: ContainerConfig) -> int:
    """Return the port inside at which it is spoken to."""
    return AGENT_PORT if has_agent(container) or container.port is None else container.port


def create_arguments(spec: WorkspaceSpec, owner: Ownership) -> dict[str, Any]:
    """Return the arguments of the SDK's ``create_container``, those of its host config as a dict of their own.

    No secret is among them: everybody who may use Docker can read them.
    """
    container = section(spec.template)
    port = port_of(container)
    memory = _bytes(container.memory) if container.memory else None
    arguments: dict[str, Any] = {
        "image": container.image,
        "name": spec.compute.name,
        "labels": owner.labels(spec.compute),
        "environment": {
            **_bare_env(spec.template),
            COMPUTE_MARKER: spec.compute.name,
            "TASKRUNNER_CHECKOUT": str(CHECKOUT),
        },
        "ports": [port],
        "host_config": {
            "port_bindings": {port: (container.publish,)},  # Docker chooses the other port
            "init": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "nano_cpus": int(container.cpus * 1_000_000_000) if container.cpus else None,
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": container.pids,
            "network_mode": container.network,
            "extra_hosts": {HOST_NAME: "host-gateway"},
        },
    }
    if container.workspace_agent is WorkspaceAgent.MOUNT:
        agent, config = FOLDER / "agent.pyz", FOLDER / "config.json"
        arguments["entrypoint"] = ["python3", "-I", str(agent), "serve", "--config", str(config)]
    elif container.command:
        arguments["entrypoint"] = list(container.command)
    else:
        return arguments
    arguments["command"] = []  # the image's own would be appended
    return arguments


def _bare_env(template: Template) -> dict[str, str]:
    """Return what the template gives to an image without our agent, which nobody else could give it later."""
    if not template.is_bare or not isinstance(template.agent, HarnessAgent):
        return {}
    port = str(port_of(section(template)))
    return {
        **template.env,
        **{name: value.replace(PORT_PLACEHOLDER, port) for name, value in template.agent.env.items()},
    }


def agent_config(spec: WorkspaceSpec, api_url: str) -> str:
    """Return the agent's configuration, with its secrets, as JSON."""
    return json.dumps(
        {
            "workspace_id": spec.compute.workspace_id,
            "attempt": spec.compute.attempt,
            "name": spec.compute.name,
            "api_url": api_url,
            "callback_token": spec.callback_token,
            "agent_token_sha256": spec.agent_token_sha256,
            "workspace": str(CHECKOUT),
            "state": str(FOLDER / "state"),
            "checkout": {"kind": "none"},  # it is put in before the start: an image need not have git
            "setup": list(spec.template.setup),
            "env": dict(spec.template.env),
            "heartbeat_interval_seconds": spec.template.heartbeat_interval.total_seconds(),
            "listen": {"host": "0.0.0.0", "port": AGENT_PORT},  # noqa: S104 (inside; outside it is published on one address)
            "announces_ready": True,
            # No process of ours starts it with an environment that only the agent would see.
            "harness": {**harness, "secrets": dict(spec.harness_env)} if (harness := spec.harness_config) else None,
        }
    )


def program(container: ContainerConfig, image: Mapping[str, Any]) -> str:
    """Return the program that the container starts with."""
    if container.workspace_agent is WorkspaceAgent.MOUNT:
        return "python3"
    config = _part(image, "Config")
    argv: list[str] = [*(container.command or (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())))]
    return argv[0] if argv else ""


def never_started(found: Mapping[str, Any]) -> bool:
    """Tell whether the container was made and not started."""
    return found["State"].get("StartedAt", _NEVER) == _NEVER


def ending(found: Mapping[str, Any], log: str = "") -> str:
    """Return in words how a container ended. ``log`` is what it wrote: its init process says what it cannot run."""
    state = found["State"]
    code = int(state.get("ExitCode") or 0)
    if state.get("OOMKilled"):
        limit = found["HostConfig"].get("Memory") or 0
        return f"its container ran out of memory (limit {limit // 1024**2} MiB, exit code {code})"
    if never_started(found):
        return f"its container did not start: {state.get('Error') or 'no reason was given'}"
    if code in {126, 127} and (said := _NOT_RUN.search(log)):
        program, why = said.groups()
        return f"its image {found['Config']['Image']} cannot run {program!r} (exit code {code}): {why}"
    hint = f" (killed by signal {code - 128})" if code > 128 else ""
    return f"its container exited with {code}{hint}"


def unhealthy(found: Mapping[str, Any]) -> str | None:
    """Return what the image's health check said last where it calls the container unhealthy, else None."""
    health = _part(found["State"], "Health")
    if health.get("Status") != "unhealthy":
        return None
    log: list[dict[str, Any]] = health.get("Log") or [{}]
    last = log[-1]
    output = " ".join(str(last.get("Output") or "it said nothing").split())
    return f"exit code {last.get('ExitCode')}: {output[-_LONGEST_HEALTH:]}"


def published_url(found: Mapping[str, Any], remote_host: str | None) -> str | None:
    """Return the URL of what the container publishes; None where it publishes nothing (any more)."""
    ports: dict[str, list[dict[str, str]] | None] = _part(found["NetworkSettings"], "Ports")
    for bindings in ports.values():
        for binding in bindings or ():
            host = binding["HostIp"]
            if host in {"0.0.0.0", "::", ""}:  # noqa: S104 (what Docker says, not what we bind)
                host = remote_host or "127.0.0.1"
            return f"http://[{host}]:{binding['HostPort']}" if ":" in host else f"http://{host}:{binding['HostPort']}"
    return None


def compute_of(labels: Mapping[str, str]) -> Compute | None:
    """Return whose container carries these labels; None where they are not ours after all."""
    try:
        return Compute(labels[WORKSPACE], int(labels[ATTEMPT]), labels.get(TASK, ""))
    except (KeyError, ValueError):
        return None


def user_of(image: Mapping[str, Any]) -> str:
    """Return the image's ``USER``; empty is root."""
    return str(_part(image, "Config").get("User") or "")


def _part(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object within what Docker said, which says null for an empty one."""
    return found.get(name) or {}


def _bytes(size: str) -> int:
    return int(size[:-1]) * _GIB[size[-1].lower()] if size[-1].isalpha() else int(size)
