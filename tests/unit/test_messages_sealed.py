"""Secret values of a task: opened with the keys that sealed them, for that task, and by nobody else."""

import json
import secrets
from pathlib import Path

import pytest
from pydantic import ValidationError

from messages.keys import Keyring, create_keys, load_keys
from messages.sealed import CannotOpen, SealedEnv, env_digest, open_env, seal_env
from messages.tasks import TaskRequest
from messages.validation import first_violation

ENV = {"API_KEY": "a-secret-that-nobody-may-see", "OTHER": "é\n\"'$(x)"}


def rotated(keys: Keyring) -> Keyring:
    """The keys after a new one was added and made the active one."""
    new = {**keys.signing_keys, "k2": secrets.token_bytes(32)}
    return keys.model_copy(update={"active": "k2", "signing_keys": new})


def test_what_is_sealed_is_opened_for_its_task_alone_and_shows_nothing(keys: Keyring) -> None:
    """S37"""
    sealed = seal_env(keys, "t-1", ENV)
    assert open_env(keys, "t-1", sealed) == ENV
    assert b"secret" not in sealed.data
    assert seal_env(keys, "t-1", ENV).data != sealed.data
    with pytest.raises(CannotOpen):
        open_env(keys, "t-2", sealed)


def test_a_rotated_key_opens_what_it_sealed_until_it_is_removed(keys: Keyring, tmp_path: Path) -> None:
    sealed = seal_env(keys, "t-1", ENV)
    later = rotated(keys)
    assert seal_env(later, "t-1", ENV).key_id == "k2"
    assert open_env(later, "t-1", sealed) == ENV
    without = later.model_copy(update={"signing_keys": {"k2": later.signing_keys["k2"]}})
    with pytest.raises(CannotOpen, match="'k1', which is not in the keys file"):
        open_env(without, "t-1", sealed)
    with pytest.raises(CannotOpen, match="other keys"):
        open_env(create_keys(tmp_path / "keys.json"), "t-1", sealed)


@pytest.mark.parametrize("data", [b"", b"short", bytes(64)])
def test_what_is_damaged_cannot_be_opened(keys: Keyring, data: bytes) -> None:
    with pytest.raises(CannotOpen, match="damaged"):
        open_env(keys, "t-1", SealedEnv(keys.active, data))


def test_the_digest_tells_values_apart_for_who_has_the_keys_and_survives_their_rotation(
    keys: Keyring, tmp_path: Path
) -> None:
    """S20, S37"""
    digest = env_digest(keys, ENV)
    assert env_digest(rotated(keys), dict(reversed(ENV.items()))) == digest
    assert env_digest(keys, {**ENV, "OTHER": "x"}) != digest
    assert env_digest(create_keys(tmp_path / "keys.json"), ENV) != digest


def test_keys_of_the_release_before_serve_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create_keys(path)
    assert set(json.loads(path.read_text())) == {"installation_id", "secret", "active", "signing_keys"}
    keys = load_keys(path)
    assert open_env(keys, "t-1", seal_env(keys, "t-1", ENV)) == ENV


def test_a_request_shows_its_values_only_where_it_is_sent() -> None:
    """S37"""
    request = TaskRequest.model_validate({"prompt": "x", "env": ENV})
    assert request.env_values() == request.body()["env"] == ENV
    shown = f"{request!r} {request} {request.model_dump()} {request.model_dump_json()}"
    assert "secret" not in shown
    assert TaskRequest.model_validate(request.body()) == request
    assert TaskRequest(prompt="x").body() == {"prompt": "x"}


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"1A": "v"}, "env.1A: has to be letters, digits and underscores, not a digit first"),
        ({"TASKRUNNER_COMPUTE": "v"}, "env: TASKRUNNER_COMPUTE is ours"),
        ({"TASKRUNNER_API_TOKEN": "v"}, "env: TASKRUNNER_API_TOKEN is ours"),
        ({"A": ""}, "env: the value of A is empty"),
        ({"A": "a-secret\0"}, "env: the value of A is empty or holds a NUL"),
        ({"A": 1}, "env.A: has to be text"),
        ({"A": "x" * 65536, "B": "y"}, "env: the values are longer than 65536 bytes"),
        ({f"A{n}": "v" for n in range(101)}, "env: has more than 100 entries"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_without_its_values(env: dict[str, object], told: str) -> None:
    """S30, S36"""
    with pytest.raises(ValidationError) as refused:
        TaskRequest.model_validate({"prompt": "x", "env": env})
    text = str(first_violation(refused.value))
    assert text.startswith(told)
    assert "secret" not in text
