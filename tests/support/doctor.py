"""What tests of the doctor share: machines as it may find them, and how a check has to read.

PYTEST_DONT_REWRITE: test modules import this before pytest makes it a plugin.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.doctor.check import Check, Status
from cli.doctor.programs import Programs


@pytest.fixture
def asked() -> Iterator[Programs]:
    asked = Programs(1.0)
    yield asked
    asked.close()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; the cache is empty too."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@pytest.fixture
def nobody() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_told(check: Check, status: Status, *words: str) -> None:
    text = f"{check.found}; {check.problem}; {check.mend}"
    assert check.status is status, check
    for word in words:
        assert word in text, check
    if status in {Status.WARNING, Status.BROKEN}:
        assert check.problem, check
        assert check.mend, check
