"""The real workspace agent's own HTTP: who may ask, and what is refused how."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.agent_process import TOKEN, AgentProcess
from tests.support.callback_api import CallbackApi, Reply

Make = Callable[..., AgentProcess]


@pytest.mark.parametrize("path", ["/healthz", "/sessions/s-1", "/nothing"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", TOKEN, "Bearer \xff\xfe"])
def test_every_path_needs_the_token(make: Make, path: str, header: str | None) -> None:
    """S35."""
    agent = make().start()
    answer = agent.request("GET", path, token=None, headers={"Authorization": header} if header else {})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_bad_requests_get_a_clear_4xx_and_start_nothing(make: Make) -> None:
    """S36."""
    agent = make().start()
    good = {"session_id": "s-1", "command": ["true"], "env": {}}
    bad: list[Any] = [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xff",
        {},
        {**good, "session_id": "../x"},
        {**good, "session_id": "S"},
        {**good, "session_id": 1},
        {**good, "session_id": "s" * 41},
        {**good, "command": "true"},
        {**good, "command": []},
        {**good, "command": [""]},
        {**good, "command": ["a", 1]},
        {**good, "command": ["a\0b"]},
        {**good, "command": ["\ud800"]},
        {**good, "env": []},
        {**good, "env": {"A": 1}},
        {**good, "env": {"A=B": "1"}},
        {**good, "env": {"": "1"}},
        {**good, "env": {"A": "\0"}},
    ]
    for body in bad:
        answer = agent.request("POST", "/sessions", body)
        assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json"), body
        assert answer.body["status"] == 400
        assert answer.body["detail"]
    assert list((agent.state / "sessions").iterdir()) == []
    assert agent.request("POST", "/sessions", good).status == 201
    assert agent.request("POST", "/sessions/s-1/cancel", {"grace_seconds": -1}).status == 400
    assert agent.request("GET", "/sessions/s-1?wait=x").status == 400
    assert agent.request("GET", "/sessions/s-1?wait=inf").status == 400
    assert agent.request("GET", "/sessions/unknown").status == 404
    assert agent.request("POST", "/sessions/unknown/cancel").status == 404
    assert agent.request("POST", "/sessions/s-1/messages", {}).status == 404
    assert agent.request("GET", "/sessions/..%2fx").status == 404
    assert agent.request("GET", "/nothing").status == 404
    assert agent.request("DELETE", "/sessions/s-1").status == 405
    assert agent.request("GET", "/sessions").headers["Allow"] == "POST"


def test_a_body_over_one_mebibyte_is_refused_and_the_answer_arrives(make: Make) -> None:
    """S36."""
    agent = make().start()
    answer = agent.request("POST", "/sessions", b" " * (3 * 1024 * 1024))
    assert (answer.status, answer.body["title"]) == (413, "Body too large")
    assert agent.request("GET", "/healthz").status == 200


def test_a_connection_is_kept_for_many_requests(make: Make) -> None:
    agent = make().start()
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
        request = f"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        started = time.monotonic()
        for _ in range(50):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < 1  # delayed acknowledgements would take 2 s
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert b"application/problem+json" in connection.recv(65536)


def test_chunked_bodies_and_false_lengths_are_refused(make: Make) -> None:
    agent = make().start()
    for header, status in [("Transfer-Encoding: chunked", b"411"), ("Content-Length: -1", b"400")]:
        with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
            connection.sendall(f"POST /sessions HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            assert connection.recv(65536).split()[1] == status


def test_who_asks_for_health_makes_what_waits_to_be_reported_tried_again(make: Make, api: CallbackApi) -> None:
    """S21: a worker that has come back asks; the API has come back with it, and nobody waits out a long pause."""
    down = True
    api.answer = lambda callback: Reply(503 if down and callback.kind != "heartbeat" else 200)
    agent = make(heartbeat_interval_seconds=3600, announces_ready=False).start()
    agent.session("s-1", "exit 3")
    path = "sessions/s-1/finished"
    api.wait_for(lambda: sum(callback.kind == path for callback in api.received) == 3)  # the next: 4 s later, or more
    down = False
    assert agent.request("GET", "/healthz").status == 200
    api.wait_for(lambda: api.count(path) == 1, timeout=2)
