"""How the answers of a workspace agent, or of whatever is on its port, are taken."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from activities.agent_client import AgentClient
from activities.errors import ActivityFailure, SessionRefused, WorkspaceUnreachable
from messages.statuses import SessionStatus
from tests.support.port import Port

RUNNING = {"session_id": "s-1", "status": "running", "delivered": False}


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


@pytest.fixture
async def agent(port: Port) -> AsyncIterator[AgentClient]:
    async with httpx.AsyncClient() as client:
        yield AgentClient(client, port.url, "the-token")


async def test_the_token_goes_with_every_request(agent: AgentClient, port: Port) -> None:
    port.answers = [(200, RUNNING)]
    await agent.create_session("s-1", ["sh", "-c", "x"], {"KEY": "v"})
    assert port.requests == [
        (
            "POST",
            "/sessions",
            "Bearer the-token",
            {"session_id": "s-1", "command": ["sh", "-c", "x"], "env": {"KEY": "v"}},
        )
    ]


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>hello</html>"),
        (200, {}),
        (200, {"status": "ok"}),
        (200, {"status": "ok", "state": "booting"}),
        (200, ["ok"]),
        (200, b""),
        (302, {"status": "ok", "state": "ready"}),
        (401, {"title": "no"}),
        (500, {}),
        (503, b"unavailable"),
        (503, {"status": "ok", "state": "ready"}),
    ],
)
async def test_only_the_agents_own_word_is_ready(agent: AgentClient, port: Port, answer: tuple[int, Any]) -> None:
    """S15: the port is open and something answers, which is not enough."""
    port.answers = [answer]
    with pytest.raises(WorkspaceUnreachable):
        await agent.health()


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


async def test_waiting_until_ready_outlasts_booting_and_names_the_last_look(agent: AgentClient, port: Port) -> None:
    booting = (503, {"status": "booting", "step": "setup[0]"})
    port.answers = [booting, (500, {}), booting, (200, {"status": "ok", "state": "ready"})]
    assert (await agent.wait_until_booted(5, worth_waiting=yes)).status == "ok"
    assert len(port.requests) == 4
    port.answers = [booting]
    with pytest.raises(WorkspaceUnreachable, match=r"booting: setup\[0\]"):
        await agent.wait_until_booted(0.2, worth_waiting=yes)


async def test_an_agent_that_says_it_failed_is_not_waited_for(agent: AgentClient, port: Port) -> None:
    """S14: that is its last word."""
    port.answers = [(503, {"status": "failed", "error": "setup[0] exited with 1"})]
    health = await agent.wait_until_booted(1000, worth_waiting=yes)
    assert (health.status, health.error) == ("failed", "setup[0] exited with 1")
    assert len(port.requests) == 1


async def test_waiting_ends_at_once_where_it_is_not_worth_it(agent: AgentClient, port: Port) -> None:
    """S14"""
    port.answers = [(503, {"status": "booting", "step": "setup[0]"})]
    with pytest.raises(WorkspaceUnreachable):
        await agent.wait_until_booted(1000, worth_waiting=no)
    assert len(port.requests) == 1


async def test_nothing_on_the_port_is_unreachable() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(WorkspaceUnreachable) as failed:
            await AgentClient(client, "http://127.0.0.1:9", "t").health()
    assert failed.value.retryable
    assert str(failed.value)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_a_refused_session_is_not_retried(agent: AgentClient, port: Port, status: int) -> None:
    """S27"""
    port.answers = [(status, {"title": "Bad Request", "detail": "command is empty"})]
    with pytest.raises(SessionRefused, match=f"{status} command is empty") as failed:
        await agent.create_session("s-1", [], {})
    assert not failed.value.retryable


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_a_passing_problem_is_retried(agent: AgentClient, port: Port, status: int) -> None:
    """S27"""
    port.answers = [(status, b"not now")]
    with pytest.raises(ActivityFailure) as failed:
        await agent.create_session("s-1", ["x"], {})
    assert failed.value.retryable


async def test_a_session_that_is_there_already_is_adopted(agent: AgentClient, port: Port) -> None:
    """S27"""
    port.answers = [(409, {"title": "another spec"}), (200, RUNNING)]
    assert (await agent.create_session("s-1", ["x"], {})).status is SessionStatus.RUNNING
    assert [request[:2] for request in port.requests] == [("POST", "/sessions"), ("GET", "/sessions/s-1")]


async def test_unknown_sessions_are_none(agent: AgentClient, port: Port) -> None:
    port.answers = [(404, {"title": "unknown"})]
    assert await agent.session("s-1", wait_seconds=1.5) is None
    assert await agent.cancel_session("s-1", grace_seconds=10) is None
    assert port.requests[0][1] == "/sessions/s-1?wait=1.5"
    assert port.requests[1][3] == {"grace_seconds": 10}


@pytest.mark.parametrize("content", [b"", b"[", {"session_id": "s-1", "status": "flying"}, [1], b'{"a":' * 5000])
async def test_nonsense_is_unreachable_and_not_a_crash(agent: AgentClient, port: Port, content: Any) -> None:
    port.answers = [(200, content)]
    with pytest.raises(WorkspaceUnreachable):
        await agent.session("s-1")
    port.answers = [(500, content)]
    with pytest.raises(WorkspaceUnreachable):
        await agent.session("s-1")
