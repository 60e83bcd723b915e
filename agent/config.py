"""What the agent is told: one JSON file that its backend writes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from agent.files import read_json, write_json

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_CHECKOUTS = ("none", "empty", "clone")


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line that says why."""


class Checkout(NamedTuple):
    """How the workspace's folder comes to be.

    ``none``: it is there already. ``empty``: a new repository with one empty commit. ``clone``: of ``url``, at
    ``commit`` if there is one, else at ``ref``, else at the default branch. ``mirrored`` is the URL that ``url`` is a
    mirror of, with the branches of that in ``refs/remotes/origin``; it becomes the clone's origin.
    """

    kind: str = "none"
    url: str = ""
    ref: str | None = None
    commit: str | None = None
    mirrored: str | None = None


class HarnessConfig(NamedTuple):
    """A harness server to start when the setup is done. ``{port}`` in its argv and environment becomes its port.

    Where it listens is ``port``, or a free one. ``token_env`` names the variable that holds its own API's bearer token.
    The variables named by ``secret_env`` are meant for the harness alone: they are in the agent's own environment, or
    in ``secrets``, which do not stay in the file (:func:`forget_secrets`).
    """

    command: tuple[str, ...]
    env: dict[str, str]
    token_env: str | None = None
    secret_env: tuple[str, ...] = ()
    secrets: dict[str, str] = {}  # noqa: RUF012 - never changed
    port: int | None = None


class Config(NamedTuple):
    """The configuration. ``workspace`` is the checkout, ``state`` the folder for all that must survive a restart.

    ``announces_ready`` is off where nobody waits for the ready callback. A failure is reported in any case.
    """

    workspace_id: str
    attempt: int
    name: str
    api_url: str
    callback_token: str
    agent_token_sha256: str
    workspace: Path
    state: Path
    checkout: Checkout
    setup: tuple[str, ...]
    env: dict[str, str]
    heartbeat_interval_seconds: float
    listen: tuple[str, int] | None
    announces_ready: bool = True
    harness: HarnessConfig | None = None


def read_config(path: Path, *, serving: bool) -> Config:
    """Read and check the file. With ``serving`` False the parts that only ``serve`` needs may be missing.

    Raises :class:`ConfigError`.
    """
    try:
        value: Any = json.loads(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"the configuration {str(path)!r} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"the configuration {str(path)!r} is not a JSON object")
    fields = cast("dict[str, Any]", value)
    return Config(
        workspace_id=_id(fields, "workspace_id", required=serving),
        attempt=_attempt(fields, required=serving),
        name=_text(fields, "name", required=serving),
        api_url=_url(fields, "api_url", required=serving),
        callback_token=_text(fields, "callback_token", required=serving),
        agent_token_sha256=_text(fields, "agent_token_sha256", required=serving).lower(),
        workspace=_folder(fields, "workspace"),
        state=_folder(fields, "state"),
        checkout=_checkout(fields.get("checkout") or {"kind": "none"}),
        setup=_setup(fields.get("setup") or []),
        env=_env(fields.get("env") or {}),
        heartbeat_interval_seconds=_interval(fields.get("heartbeat_interval_seconds", 15)),
        listen=_listen(fields.get("listen")),
        announces_ready=fields.get("announces_ready") is not False,
        harness=_harness(fields.get("harness")),
    )


def forget_secrets(path: Path) -> None:
    """Take the harness's secrets out of the file, once it was read: sessions run as the same user, and may look there.

    Raises ``OSError``.
    """
    fields: dict[str, Any] = read_json(path) or {}
    harness = fields.get("harness")
    if isinstance(harness, dict) and cast("dict[str, Any]", harness).pop("secrets", None):
        write_json(path, fields, durable=False)


def is_env(value: object) -> bool:
    """Tell whether ``value`` maps names to values that a process's environment can hold."""
    return isinstance(value, dict) and all(
        is_argument(name) and name and "=" not in name and is_argument(content)
        for name, content in cast("dict[Any, Any]", value).items()
    )


def is_argument(value: object) -> bool:
    """Tell whether ``value`` is a text that can be handed to a program: without NULs and lone surrogates."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(fields: dict[str, Any], key: str, *, required: bool = True) -> str:
    value = fields.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"configuration: {key} must be a text that is not empty")
    return value


def _id(fields: dict[str, Any], key: str, *, required: bool) -> str:
    value = _text(fields, key, required=required)
    if value and ID.fullmatch(value) is None:
        raise ConfigError(f"configuration: {key} must match {ID.pattern}")
    return value


def _url(fields: dict[str, Any], key: str, *, required: bool) -> str:
    value = _text(fields, key, required=required)
    if not value:
        return ""
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"configuration: {key} must be an http or https URL")
    return value.rstrip("/")


def _attempt(fields: dict[str, Any], *, required: bool) -> int:
    value = fields.get("attempt", None if required else 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError("configuration: attempt must be a positive integer")
    return value


def _folder(fields: dict[str, Any], key: str) -> Path:
    path = Path(_text(fields, key))
    if not path.is_absolute():
        raise ConfigError(f"configuration: {key} must be an absolute path")
    return path


def _checkout(value: Any) -> Checkout:
    if not isinstance(value, dict) or cast("dict[str, Any]", value).get("kind") not in _CHECKOUTS:
        raise ConfigError(f"configuration: checkout.kind must be one of {', '.join(_CHECKOUTS)}")
    fields = cast("dict[str, Any]", value)
    if fields["kind"] != "clone":
        return Checkout(fields["kind"])
    optional: dict[str, str | None] = {}
    for key in ("ref", "commit", "mirrored"):
        optional[key] = _text(fields, key, required=False) or None
    return Checkout("clone", _text(fields, "url"), **optional)


def _setup(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(is_argument(command) for command in cast("list[Any]", value)):
        raise ConfigError("configuration: setup must be a list of shell commands")
    return tuple(cast("list[str]", value))


def _harness(value: Any) -> HarnessConfig | None:
    if value is None:
        return None
    fields = cast("dict[str, Any]", value if isinstance(value, dict) else {})
    command: Any = fields.get("command")
    secret_env: Any = fields.get("secret_env") or []
    if (
        not isinstance(command, list)
        or not command
        or not all(is_argument(part) for part in cast("list[Any]", command))
    ):
        raise ConfigError("configuration: harness.command must be a list of texts that is not empty")
    if not isinstance(secret_env, list) or not all(isinstance(name, str) for name in cast("list[Any]", secret_env)):
        raise ConfigError("configuration: harness.secret_env must be a list of names")
    port: Any = fields.get("port")
    if port is not None and (not isinstance(port, int) or not 0 < port <= 65535):
        raise ConfigError("configuration: harness.port must be a port")
    return HarnessConfig(
        command=tuple(cast("list[str]", command)),
        env=_env(fields.get("env") or {}),
        token_env=_text(fields, "token_env", required=False) or None,
        secret_env=tuple(cast("list[str]", secret_env)),
        secrets=_env(fields.get("secrets") or {}),
        port=port,
    )


def _env(value: Any) -> dict[str, str]:
    if not is_env(value):
        raise ConfigError("configuration: env must map names to texts")
    return dict(cast("dict[str, str]", value))


def _interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError("configuration: heartbeat_interval_seconds must be a positive number")
    return float(value)


def _listen(value: Any) -> tuple[str, int] | None:
    if value is None:
        return None
    fields = cast("dict[str, Any]", value if isinstance(value, dict) else {})
    host, port = fields.get("host"), fields.get("port")
    if not isinstance(host, str) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError("configuration: listen must hold a host and a port")
    return host, port
