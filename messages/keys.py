"""The installation's keys, in one file that its owner alone can read.

The file is JSON: ``installation_id``, ``secret`` (32 bytes, base64) from which workspace agents' tokens are derived,
``active`` (the id of the key that signs) and ``signing_keys`` (by id, 32-byte Ed25519 seeds in base64, from which
``messages/sealed.py`` derives the keys that seal). To rotate, add a key, make it ``active``, and remove the old one
when its last token has expired (24 hours after the last attempt began with it) and no task submitted before still
runs.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from messages.file_errors import trouble_with
from messages.names import Id

_Seed = Annotated[Base64Bytes, Field(min_length=32, max_length=32)]


class KeysError(Exception):
    """The keys file cannot be used; the text says why and what to do."""


class Keyring(BaseModel):
    """The installation's identity and keys. Never printed, never sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    installation_id: Id
    secret: Annotated[_Seed, Field(repr=False)]
    active: str
    signing_keys: Annotated[dict[str, _Seed], Field(repr=False)]

    @model_validator(mode="after")
    def _active_is_there(self) -> Self:
        if self.active not in self.signing_keys:
            raise ValueError(f"active key {self.active!r} is not among signing_keys")
        return self

    def signing_key(self, key_id: str) -> Ed25519PrivateKey | None:
        """Return the private key called ``key_id``, or None."""
        seed = self.signing_keys.get(key_id)
        return Ed25519PrivateKey.from_private_bytes(seed) if seed else None

    def agent_token(self, workspace_id: str, attempt: int) -> str:
        """Return the bearer token that one attempt's workspace agent accepts: 64 hexadecimal digits.

        HMAC-SHA256 over workspace and attempt: derived where it is needed, stored nowhere.
        """
        return hmac.new(self.secret, f"agent/{workspace_id}/{attempt}".encode(), hashlib.sha256).hexdigest()

    def agent_token_sha256(self, workspace_id: str, attempt: int) -> str:
        """Return what the agent itself holds: the SHA-256 of its token, in hexadecimal."""
        return hashlib.sha256(self.agent_token(workspace_id, attempt).encode()).hexdigest()


def load_keys(path: Path) -> Keyring:
    """Read the keys file; raise :class:`KeysError` where it is missing, readable by others or broken."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise KeysError(
            f"cannot read the keys file {path}: {e.strerror}; let TASKRUNNER_KEYS_FILE name the keys file"
        ) from e
    except OSError as e:
        raise KeysError(f"cannot read the keys file: {trouble_with(path, e, home=path.parent)}") from e
    if mode & 0o077:
        raise KeysError(f"the keys file {path} can be read by others; run: chmod 600 {path}")
    try:
        return Keyring.model_validate_json(content)
    except ValidationError as e:
        fields = ", ".join(sorted({".".join(map(str, error["loc"])) for error in e.errors()} - {""}))
        raise KeysError(
            f"the keys file {path} is broken{f' ({fields})' if fields else ''}; restore it, or move it away to begin "
            "with new keys (running workspaces can then no longer report)"
        ) from None


def _new_content() -> dict[str, object]:
    def seed() -> str:
        return base64.b64encode(secrets.token_bytes(32)).decode()

    return {
        "installation_id": f"i-{secrets.token_hex(8)}",
        "secret": seed(),
        "active": "k1",
        "signing_keys": {"k1": seed()},
    }


def passing_keys() -> Keyring:
    """Return keys that nobody else has, and that are kept nowhere: for what needs a keyring and uses no key."""
    return Keyring.model_validate(_new_content())


def create_keys(path: Path) -> Keyring:
    """Make new keys at ``path`` unless a file is there already, and return what is there."""
    if path.exists():
        return load_keys(path)
    content = _new_content()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.link(partial, path)  # fails where another process was faster; then its keys count
    except FileExistsError:
        pass
    except OSError as e:
        raise KeysError(f"cannot make the keys file: {trouble_with(path, e, home=path.parent)}") from e
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return load_keys(path)
