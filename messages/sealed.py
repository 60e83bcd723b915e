"""Environment values of a task while they are stored: sealed under the installation's keys, for that task alone.

AES-256-GCM with a random nonce. The key is derived (HKDF, RFC 5869) from one of the keyring's signing keys, whose id is
kept beside what it sealed: so a rotated key opens what it sealed for as long as it stays in the file.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from messages.keys import Keyring

_NONCE_BYTES = 12
_SEALING = b"taskrunner/task-env/aes-256-gcm"
_COMPARING = b"taskrunner/task-env/hmac-sha256"


class SealedEnv(NamedTuple):
    """What the registry stores: the id of the key, and nonce and ciphertext."""

    key_id: str
    data: bytes


class CannotOpen(Exception):
    """It was sealed with a key that is not (or no longer) among ours, for another task, or is damaged."""


def seal_env(keys: Keyring, task_id: str, env: Mapping[str, str]) -> SealedEnv:
    """Return ``env`` sealed for one task; nobody else's keys and no other task id open it."""
    key_id, nonce = keys.active, os.urandom(_NONCE_BYTES)
    sealed = AESGCM(_key(keys, key_id)).encrypt(nonce, _encode(env), _bound_to(keys, task_id))
    return SealedEnv(key_id, nonce + sealed)


def open_env(keys: Keyring, task_id: str, sealed: SealedEnv) -> dict[str, str]:
    """Return what was sealed for the task; raise :class:`CannotOpen`."""
    if sealed.key_id not in keys.signing_keys:
        raise CannotOpen(f"sealed with key {sealed.key_id!r}, which is not in the keys file")
    nonce, data = sealed.data[:_NONCE_BYTES], sealed.data[_NONCE_BYTES:]
    try:
        text = AESGCM(_key(keys, sealed.key_id)).decrypt(nonce, data, _bound_to(keys, task_id))
    except (InvalidTag, ValueError):
        raise CannotOpen("sealed with other keys than those in the keys file, or damaged") from None
    env: dict[str, str] = json.loads(text)
    return env


def env_digest(keys: Keyring, env: Mapping[str, str]) -> str:
    """Return what tells two environments apart and nothing else of them: a keyed hash, the same whatever key signs."""
    return hmac.new(_derive(keys.secret, _COMPARING), _encode(env), hashlib.sha256).hexdigest()


def _encode(env: Mapping[str, str]) -> bytes:
    return json.dumps(dict(env), sort_keys=True, separators=(",", ":")).encode()


def _bound_to(keys: Keyring, task_id: str) -> bytes:
    return f"{keys.installation_id}/{task_id}".encode()


def _key(keys: Keyring, key_id: str) -> bytes:
    return _derive(keys.signing_keys[key_id], _SEALING)


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
