"""Who is let in, and what is let through, over a real socket."""

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from messages.callbacks import MAX_BODY_BYTES, MAX_OUTPUT_BODY_BYTES
from messages.keys import Keyring, create_keys
from messages.signals import ProvisioningFailed, SessionFinished, WorkspaceReady
from messages.tokens import LIFETIME, CallbackClaims, mint_callback_token
from tests.support.api import API_TOKEN, RunningApi, Workspace, signals

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

ROUTES: dict[str, dict[str, Any]] = {
    "ready": {},
    "provisioning-failed": {"error_message": "x"},
    "boot-log": {"step": "a", "status": "started", "message": "b", "timestamp": "2026-01-01T00:00:00Z"},
    "heartbeat": {"state": "ready"},
    "sessions/{session}/output": {"offset": 0, "chunks": ["x"]},
    "sessions/{session}/finished": {"status": "completed"},
}


def _claims(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    issued = int(workspace.created_at.timestamp())
    claims = CallbackClaims(
        sub=workspace.id,
        att=1,
        wf=workspace.workflow_id,
        iat=issued,
        exp=issued + int(LIFETIME.total_seconds()),
    )
    return {**claims.model_dump(), **changes}


def _signed(keys: Keyring, claims: dict[str, Any], **changes: Any) -> str:
    key = keys.signing_key(keys.active)
    return jwt.encode(
        claims, changes.get("key", key), algorithm="EdDSA", headers={"kid": changes.get("kid", keys.active)}
    )


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _public_bytes(keys: Keyring) -> bytes:
    key = keys.signing_key(keys.active)
    assert key is not None
    return key.public_key().public_bytes_raw()


REFUSED: dict[str, Callable[[Keyring, Workspace, Path], str | None]] = {
    "none at all": lambda keys, w, tmp: None,
    "empty": lambda keys, w, tmp: "Bearer",
    "other scheme": lambda keys, w, tmp: f"Basic {w.token}",
    "malformed": lambda keys, w, tmp: "Bearer not-a-token",
    "no signature": lambda keys, w, tmp: f"Bearer {w.token.rpartition('.')[0]}.",
    "changed payload": lambda keys, w, tmp: (
        f"Bearer {w.token.split('.')[0]}.{_part(_claims(w, att=2))}.{w.token.split('.')[2]}"
    ),
    "huge": lambda keys, w, tmp: f"Bearer {'a' * 30_000}",
    "deep header": lambda keys, w, tmp: f"Bearer {base64.urlsafe_b64encode(b'[' * 2900).decode().rstrip('=')}.e30.AAAA",
    "kid is no text": lambda keys, w, tmp: f"Bearer {_part({'alg': 'EdDSA', 'kid': [1]})}.{_part(_claims(w))}.AAAA",
    "expired": lambda keys, w, tmp: f"Bearer {w.token_of(1, age=timedelta(hours=24, seconds=5))}",
    "other installation's key": lambda keys, w, tmp: (
        "Bearer "
        + mint_callback_token(
            create_keys(tmp / "other.json"),
            workspace_id=w.id,
            attempt=1,
            workflow_id=w.workflow_id,
            issued_at=w.created_at,
        )
    ),
    "unknown key id": lambda keys, w, tmp: f"Bearer {_signed(keys, _claims(w), kid='k9')}",
    "key of its own under our id": lambda keys, w, tmp: (
        f"Bearer {_signed(keys, _claims(w), key=Ed25519PrivateKey.generate())}"
    ),
    "alg none": lambda keys, w, tmp: f"Bearer {_part({'alg': 'none', 'kid': keys.active})}.{_part(_claims(w))}.",
    "HMAC with the public key": lambda keys, w, tmp: (
        "Bearer " + jwt.encode(_claims(w), _public_bytes(keys), algorithm="HS256", headers={"kid": keys.active})
    ),
    "other audience": lambda keys, w, tmp: f"Bearer {_signed(keys, _claims(w, aud='taskrunner-user'))}",
    "no audience": lambda keys, w, tmp: f"Bearer {_signed(keys, {k: v for k, v in _claims(w).items() if k != 'aud'})}",
    "no expiry": lambda keys, w, tmp: f"Bearer {_signed(keys, {k: v for k, v in _claims(w).items() if k != 'exp'})}",
    "no attempt": lambda keys, w, tmp: f"Bearer {_signed(keys, {k: v for k, v in _claims(w).items() if k != 'att'})}",
    "attempt 0": lambda keys, w, tmp: f"Bearer {_signed(keys, _claims(w, att=0))}",
    "a user's token": lambda keys, w, tmp: f"Bearer {API_TOKEN}",
}


def _paths(workspace: Workspace) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{workspace.path}/{what.format(session=workspace.session)}", body) for what, body in ROUTES.items()]


async def _nothing_changed(api: RunningApi, workspace: Workspace) -> None:
    assert await signals(workspace.workflow) == []
    view = await api.registry.workspaces.get(workspace.id)
    assert view is not None
    assert (view.last_heartbeat_at, view.boot_log, view.verdict) == (None, [], None)
    assert (await api.registry.sessions.read_output(workspace.task.task_id)).data == b""


async def test_who_shows_no_valid_token_is_401_on_every_callback_route(
    api: RunningApi, keys: Keyring, tmp_path: Path
) -> None:
    """S35."""
    workspace = await api.with_session(await api.workspace())
    for case, make in REFUSED.items():
        token = make(keys, workspace, tmp_path)
        headers = {"Authorization": token} if token is not None else {}
        for path, body in _paths(workspace):
            answer = await api.anyone.post(path, json=body, headers=headers)
            assert (case, path, answer.status_code) == (case, path, 401)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == "Bearer"
            if token and token.split()[1:]:
                assert token.split()[1] not in answer.text
    await _nothing_changed(api, workspace)


async def test_a_token_for_something_else_is_403_on_every_callback_route(api: RunningApi, keys: Keyring) -> None:
    """S35: other workspace, other scope. Older attempts are proved in test_api_callbacks."""
    workspace = await api.with_session(await api.workspace())
    other = await api.workspace()
    for case, token in {
        "other workspace": other.token,
        "other scope": _signed(keys, _claims(workspace, scope="phone-home")),
    }.items():
        for path, body in _paths(workspace):
            answer = await api.anyone.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
            assert (case, path, answer.status_code) == (case, path, 403)
    await _nothing_changed(api, workspace)
    assert await signals(other.workflow) == []


USER_ROUTES = [
    ("POST", "/api/tasks"),
    ("GET", "/api/tasks"),
    ("GET", "/api/tasks/{task}"),
    ("GET", "/api/tasks/{task}/events"),
    ("GET", "/api/tasks/{task}/logs"),
    ("GET", "/api/tasks/{task}/diff"),
    ("POST", "/api/tasks/{task}/cancel"),
    ("GET", "/api/workspaces"),
    ("GET", "/api/workspaces/{workspace}"),
    ("GET", "/api/templates"),
    ("GET", "/api/templates/local"),
]


async def test_user_routes_take_neither_callback_tokens_nor_none(api: RunningApi) -> None:
    """S35."""
    workspace = await api.workspace()
    tokens = [None, workspace.token, "wrong", API_TOKEN + "x", "x y", "\xe9", "a" * 20_000]
    for method, path in USER_ROUTES:
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}".encode("latin-1")} if token is not None else {}
            url = path.format(task=workspace.task.task_id, workspace=workspace.id)
            answer = await api.anyone.request(
                method, url, headers=headers, json={"prompt": "x"} if method == "POST" else None
            )
            assert (method, path, token, answer.status_code) == (method, path, token, 401)
            assert answer.headers["content-type"] == "application/problem+json"
    assert len((await api.registry.tasks.list()).tasks) == 1


async def test_every_route_that_there_is_asks_for_a_token(api: RunningApi) -> None:
    """A route that somebody adds later is not forgotten above."""
    described = (await api.anyone.get("/openapi.json")).json()["paths"]
    open_routes = {"/healthz", "/readyz"}
    for path, operations in described.items():
        for operation in operations.values():
            assert bool(operation.get("security")) is (path not in open_routes), path


BAD_BODIES: dict[str, bytes] = {
    "not JSON": b"{",
    "two values": b"{}{}",
    "a list": b"[]",
    "null": b"null",
    "text": b'"ready"',
    "not UTF-8": b'{"agent_version": "\xff\xfe"}',
    "a lone surrogate": b'{"agent_version": "\\ud800", "error_message": "\\ud800", "summary": "\\ud800",'
    b' "reason": "\\udfff", "message": "\\ud800", "chunks": ["\\ud800"]}',
    "NaN": b'{"metrics": {"a": NaN}, "x": NaN}',
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep list": b"[" * 60_000,
    "a huge number": b'{"attempt": ' + b"1" * 50_000 + b"}",
}


async def test_bodies_that_are_no_proper_json_are_400_and_change_nothing(api: RunningApi) -> None:
    """S36."""
    workspace = await api.with_session(await api.workspace())
    for case, body in BAD_BODIES.items():
        for path, _ in _paths(workspace):
            answer = await api.anyone.post(path, content=body, headers=workspace.headers)
            assert (case, path, answer.status_code) == (case, path, 400)
            problem = answer.json()
            assert problem["status"] == 400
            assert problem["detail"]
    await _nothing_changed(api, workspace)


def _camel(name: str) -> str:
    return name.replace("_", "").lower()


async def test_wrong_types_are_400_and_name_the_field(api: RunningApi) -> None:
    """S36."""
    workspace = await api.with_session(await api.workspace())
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("ready", {"agent_version": ["1"]}, "agentVersion"),
        ("ready", {"tlsCertificate": "x" * 5000}, "tlsCertificate"),
        ("provisioning-failed", {"error_message": 5}, "errorMessage"),
        ("provisioning-failed", {"log_tail": {"a": 1}}, "logTail"),
        ("boot-log", ROUTES["boot-log"] | {"status": "exploded"}, "status"),
        ("boot-log", ROUTES["boot-log"] | {"timestamp": "yesterday"}, "timestamp"),
        ("boot-log", {"step": "a"}, "status"),
        ("heartbeat", {"state": "dead"}, "state"),
        ("heartbeat", {}, "state"),
        ("heartbeat", {"state": "ready", "pending": -1}, "pending"),
        ("heartbeat", {"state": "ready", "sessions": ["../x"]}, "sessions"),
        ("heartbeat", {"state": "ready", "metrics": {"a": "much"}}, "metrics"),
        ("sessions/{session}/output", {"offset": -1, "chunks": []}, "offset"),
        ("sessions/{session}/output", {"offset": 2**70, "chunks": []}, "offset"),
        ("sessions/{session}/output", {"offset": 0, "chunks": "text"}, "chunks"),
        ("sessions/{session}/finished", {"status": "running"}, "status"),
        ("sessions/{session}/finished", {"status": "completed", "exit_code": 2**40}, "exitCode"),
        ("sessions/{session}/finished", {"status": "completed", "exit_code": 1.5}, "exitCode"),
    ]
    for what, body, field in wrong:
        path = f"{workspace.path}/{what.format(session=workspace.session)}"
        answer = await api.anyone.post(path, json=body, headers=workspace.headers)
        assert (what, body, answer.status_code) == (what, body, 400)
        fields = [error["field"].split(".")[0] for error in answer.json()["errors"]]
        assert _camel(field) in map(_camel, fields), (what, fields)
    await _nothing_changed(api, workspace)


async def test_camel_case_and_unknown_fields_are_taken_and_what_arrives_can_be_decoded(api: RunningApi) -> None:
    """S36: every signal in the history is read by the very model that the workflow reads it with."""
    workspace = await api.with_session(await api.workspace())
    sent: list[tuple[str, dict[str, Any]]] = [
        ("ready", {"agentVersion": "1\0.0", "tlsCertificate": "c", "somethingNew": {"deep": [[1]]}}),
        ("provisioning-failed", {"errorMessage": "\0", "logTail": "a\0b", "workspace_id": 5, "attempt": "x"}),
        (
            f"sessions/{workspace.session}/finished",
            {"status": "failed", "exitCode": -9, "errorMessage": "\0k", "zzz": None},
        ),
    ]
    for what, body in sent:
        answer = await api.anyone.post(f"{workspace.path}/{what}", json=body, headers=workspace.headers)
        assert (what, answer.status_code) == (what, 200)
    models: list[Any] = [WorkspaceReady, ProvisioningFailed, SessionFinished]
    found = await signals(workspace.workflow)
    assert len(found) == 3
    for (_, argument), model in zip(found, models, strict=True):
        decoded = model.model_validate(argument)
        assert (decoded.workspace_id, decoded.attempt) == (workspace.id, 1)
        assert "\0" not in decoded.model_dump_json()
        assert "\\u0000" not in decoded.model_dump_json()


async def test_bodies_over_the_limit_are_413_and_change_nothing(api: RunningApi) -> None:
    """S36: said by the header, or found while it streams."""
    workspace = await api.with_session(await api.workspace())

    async def endless(size: int) -> Any:
        yield b'{"chunks": ["'
        for _ in range(size // 1000 + 1):
            yield b"x" * 1000

    for what in ROUTES:
        limit = MAX_OUTPUT_BODY_BYTES if what.endswith("output") else MAX_BODY_BYTES
        path = f"{workspace.path}/{what.format(session=workspace.session)}"
        for content in (b"x" * (limit + 1), endless(limit)):
            answer = await api.anyone.post(path, content=content, headers=workspace.headers)
            assert (what, answer.status_code) == (what, 413)
            assert str(limit) in answer.json()["detail"]
    await _nothing_changed(api, workspace)
    headroom = MAX_OUTPUT_BODY_BYTES - 100
    path = f"{workspace.path}/sessions/{workspace.session}/output"
    answer = await api.anyone.post(path, json={"offset": 0, "chunks": ["x" * headroom]}, headers=workspace.headers)
    assert answer.status_code == 202


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(api: RunningApi) -> None:
    """S36."""
    workspace = await api.workspace()
    url = urlsplit(workspace.path)
    assert url.hostname
    assert url.port
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(
        f"POST {url.path}/ready HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {workspace.token}\r\n"
        f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_ends_early_disturbs_nothing(api: RunningApi) -> None:
    """S36."""
    workspace = await api.workspace()
    url = urlsplit(workspace.path)
    assert url.hostname
    assert url.port
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(
        f"POST {url.path}/ready HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {workspace.token}\r\n"
        "Content-Length: 50\r\n\r\n{".encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await api.anyone.get("/healthz")).status_code == 200
    await _nothing_changed(api, workspace)


async def test_a_path_that_leads_nowhere_is_not_echoed_whole(api: RunningApi) -> None:
    long = "x" * 30_000
    for method, path, status in (
        ("GET", f"/{long}", 404),
        ("DELETE", f"/api/tasks/{long}", 405),
        ("GET", f"/api/tasks/{long}", 404),
        ("GET", f"/api/tasks?{long}=1", 400),
    ):
        answer = await api.user.request(method, path)
        assert (path[:11], answer.status_code) == (path[:11], status)
        assert len(answer.content) < 1500
        assert answer.json()["detail"]


MISSPELT = {
    "/api/tasks?bogus=1": "parameter bogus: is not known here; known: status, step, backend, limit, cursor",
    "/api/tasks?statos=failed&limit=2": "parameter statos: is not known here; did you mean 'status'?",
    "/api/workspaces?state=removed": "parameter state: is not known here; did you mean 'status'?",
    "/api/workspaces/{workspace}?limit=1": "parameter limit: is not known here; no parameter is",
    "/api/tasks/{task}?folow=1": "parameter folow: is not known here; no parameter is",
    "/api/tasks/{task}/events?folow=false": "parameter folow: is not known here; did you mean 'follow'?",
    "/api/tasks/{task}/logs?offest=5": "parameter offest: is not known here; did you mean 'offset'?",
    "/api/tasks/{task}/boot-log?affter=5": "parameter affter: is not known here; did you mean 'after'?",
    "/api/templates?x=y": "parameter x: is not known here; no parameter is",
}


async def test_a_misspelt_parameter_is_refused_with_the_nearest_known_one(api: RunningApi) -> None:
    """It would be a filter that lists everything."""
    workspace = await api.workspace()
    for path, told in MISSPELT.items():
        url = path.format(task=workspace.task.task_id, workspace=workspace.id)
        answer = await api.user.get(url)
        assert (url, answer.status_code, answer.json()["detail"]) == (url, 400, told)
        assert answer.json()["type"] == "urn:taskrunner:problem:invalid-parameter"
        (error,) = answer.json()["errors"]
        assert f"parameter {error['field']}: {error['message']}" == told
        assert (await api.anyone.get(url)).status_code == 401


async def test_paths_that_lead_nowhere_are_problems(api: RunningApi) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/api/nothing", 404),
        ("DELETE", "/api/tasks", 405),
        ("GET", "/api/tasks/%00", 404),
        ("GET", "/api/tasks/..%2f..%2fetc", 404),
        ("GET", "/api/tasks/" + "x" * 3000, 404),
        ("GET", "/api/workspaces/nope", 404),
        ("GET", "/api/workspaces/%ff", 404),
        ("GET", "/api/templates/nope", 404),
        ("GET", "/api/tasks?limit=0", 400),
        ("GET", "/api/tasks?limit=many", 400),
        ("GET", "/api/tasks?status=lost", 400),
        ("GET", "/api/tasks?cursor=%00", 400),
        ("GET", "/api/tasks?cursor=" + base64.urlsafe_b64encode(b'["x", "y"]').decode(), 400),
        ("POST", "/api/tasks/", 404),
    ):
        answer = await api.user.request(method, path)
        assert (path, answer.status_code) == (path, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]


async def test_a_name_that_is_not_ours_in_the_host_header_is_refused_on_loopback(api: RunningApi) -> None:
    """A page that rebinds its name to 127.0.0.1 reaches nothing."""
    port = urlsplit(api.url).port
    for host, status in (
        (f"127.0.0.1:{port}", 200),
        (f"localhost:{port}", 200),
        (f"[::1]:{port}", 200),
        ("evil.example", 421),
        (f"evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ):
        answer = await api.anyone.get("/healthz", headers={"Host": host})
        assert (host, answer.status_code) == (host, status)


async def test_tokens_appear_in_no_log_line(api: RunningApi, caplog: pytest.LogCaptureFixture) -> None:
    """S37: whatever is requested, at the most talkative level."""
    with caplog.at_level(logging.DEBUG):
        workspace = await api.workspace()
        await api.anyone.post(f"{workspace.path}/ready", headers=workspace.headers)
        await api.anyone.post(f"{workspace.path}/ready", content=b"{", headers=workspace.headers)
        await api.anyone.post("/api/callbacks/phone-home/secret-in-the-path", content=b"x=1")
        await api.user.get("/api/tasks")
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    for line in ours:
        assert workspace.token not in line
        assert API_TOKEN not in line
        assert "secret-in-the-path" not in line
