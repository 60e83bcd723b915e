"""Tests reach this machine only, unless they say otherwise."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.network import NetworkIsOff, take_refused, within_reach

ELSEWHERE = "192.0.2.1"  # reserved for documentation: it is nowhere


@pytest.fixture
def attempt() -> Iterator[socket.socket]:
    """A socket whose connect is only begun."""
    with socket.socket() as attempt:
        attempt.setblocking(False)
        yield attempt


def test_another_machine_is_refused(attempt: socket.socket) -> None:
    with pytest.raises(NetworkIsOff, match=r"192\.0\.2\.1 .* marked with network"):
        attempt.connect((ELSEWHERE, 443))
    with pytest.raises(NetworkIsOff):
        attempt.connect_ex((ELSEWHERE, 443))
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(NetworkIsOff):
        datagrams.sendto(b"x", (ELSEWHERE, 53))
    with socket.socket(socket.AF_INET6) as other, pytest.raises(NetworkIsOff):
        other.connect((f"::ffff:{ELSEWHERE}", 443))
    assert take_refused() == [ELSEWHERE] * 3 + [f"::ffff:{ELSEWHERE}"]


@pytest.mark.parametrize("host", [ELSEWHERE, "example.org"])
async def test_libraries_are_refused_too_and_what_they_swallow_is_told(host: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with suppress(Exception):
            await client.get(f"http://{host}")
    assert set(take_refused()) == {host}


def test_this_machine_is_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("127.0.0.1", "localhost", "0.0.0.0"):
            socket.create_connection((name, server.getsockname()[1])).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        client.connect(str(tmp_path / "socket"))


def test_a_network_that_a_test_made_is_within_reach(attempt: socket.socket) -> None:
    with within_reach("192.0.2.0/24"):
        attempt.connect_ex((ELSEWHERE, 443))
    with pytest.raises(NetworkIsOff):
        attempt.connect_ex((ELSEWHERE, 443))
    assert take_refused()


@pytest.mark.network
def test_a_test_that_says_so_reaches_all(attempt: socket.socket) -> None:
    attempt.connect_ex((ELSEWHERE, 443))
