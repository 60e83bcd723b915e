"""Where systemd runs, an agent leaves the worker's unit; where that is refused, a warning says what to do."""

import os
from pathlib import Path

import pytest

from activities import processes, scopes


@pytest.fixture
def busctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``busctl`` that notes its arguments: systemd itself does not run where tests do."""
    monkeypatch.setattr(scopes, "runs_systemd", lambda: True)
    program = tmp_path / "busctl"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\n[ -z "$FAIL" ] || {{ echo "$FAIL" >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    return tmp_path


def me() -> processes.ProcessId:
    process = processes.identify(os.getpid())
    assert process is not None
    return process


async def test_the_process_gets_a_scope_named_after_its_compute(busctl: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = {"PATH": f"{busctl}:{os.environ['PATH']}"}
    await scopes.move_to_scope("tr-w-1", me(), env=env)
    said = (busctl / "said").read_text().split("\n")
    assert said[said.index("StartTransientUnit") :] == [
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", "tr-w-1.scope", "fail"),
        *("2", "PIDs", "au", "1", str(os.getpid()), "CollectMode", "s", "inactive-or-failed", "0", ""),
    ]
    assert caplog.text == ""


async def test_a_refusal_costs_a_warning(busctl: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = {"PATH": f"{busctl}:{os.environ['PATH']}", "FAIL": "Access denied"}
    await scopes.move_to_scope("tr-w-1", me(), env=env)
    assert "KillMode=process" in caplog.text
    assert "Access denied" in caplog.text
    caplog.clear()
    await scopes.move_to_scope("tr-w-1", me(), env={"PATH": "/nonexistent"})
    assert "busctl" in caplog.text
