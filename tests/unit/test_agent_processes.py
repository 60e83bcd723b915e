"""Finding and ending processes, reading the configuration, and building the zipapp."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agent.build import build_zipapp
from agent.config import ConfigError, read_config
from agent.processes import Process, end_processes, look_at, process_table, with_descendants

GOOD: dict[str, Any] = {
    "workspace_id": "w-1",
    "attempt": 2,
    "name": "tr-w-1-2",
    "api_url": "http://127.0.0.1:8070/",
    "callback_token": "t",
    "agent_token_sha256": "A" * 64,
    "workspace": "/w",
    "state": "/s",
}


def finder(*started: "subprocess.Popen[bytes]") -> Any:
    def find() -> list[Process]:
        table = process_table()
        found = with_descendants([p.pid for p in started], table)
        return [table[pid] for pid in sorted(found) if pid in table and table[pid].state != "Z"]

    return find


def shell(script: str) -> "subprocess.Popen[bytes]":
    """Start a script and wait until it has said that it is up."""
    process = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


def test_a_process_is_seen_with_its_parent_group_and_start() -> None:
    process = shell("echo up; exec sleep 300")
    try:
        seen = look_at(process.pid)
        assert seen is not None
        assert (seen.parent, seen.group, seen.session) == (os.getpid(), process.pid, process.pid)
        assert process_table()[process.pid].started == seen.started > 0
    finally:
        process.kill()
        process.wait()
    assert look_at(process.pid) is None


def test_processes_that_obey_are_ended_at_once_and_none_is_killed() -> None:
    process = shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    started = time.monotonic()
    assert end_processes(finder(process), 30)
    assert time.monotonic() - started < 5
    assert process.wait() == 7


def test_processes_that_do_not_obey_are_killed_after_the_grace_with_all_below_them() -> None:
    process = shell(
        "trap '' TERM; (trap '' TERM; setsid sleep 300 & echo up; sleep 300) & while :; do sleep 0.05; done"
    )
    started = time.monotonic()
    find = finder(process)
    assert len(find()) > 2
    below = [p.pid for p in find()]
    assert end_processes(find, 0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert process.wait() == -signal.SIGKILL
    assert not [pid for pid in below if (seen := look_at(pid)) and seen.state != "Z"]


def test_a_stopped_process_is_killed_too() -> None:
    process = shell("echo up; kill -STOP $$; sleep 300")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert end_processes(finder(process), 0.1)
    assert process.wait() == -signal.SIGKILL


def test_without_terminate_nobody_is_told() -> None:
    process = shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    assert end_processes(finder(process), 0.2, terminate=False)
    assert process.wait() == -signal.SIGKILL


def test_a_process_that_got_the_number_of_another_is_left_alone() -> None:
    process = shell("echo up; exec sleep 300")
    try:
        seen = look_at(process.pid)
        assert seen is not None
        other = seen._replace(started=seen.started - 1)
        looks = iter([[other], [other], []])
        assert end_processes(lambda: next(looks), 0.01)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_configuration_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD))
    config = read_config(path, serving=True)
    assert config.api_url == "http://127.0.0.1:8070"
    assert config.agent_token_sha256 == "a" * 64
    assert (config.checkout.kind, config.setup, config.env, config.listen) == ("none", (), {}, None)
    assert config.heartbeat_interval_seconds == 15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workspace_id": "../x"}, "workspace_id"),
        ({"workspace_id": None}, "workspace_id"),
        ({"attempt": 0}, "attempt"),
        ({"attempt": "1"}, "attempt"),
        ({"api_url": "ftp://x"}, "api_url"),
        ({"api_url": "http://x:99999"}, "api_url"),
        ({"api_url": "http://"}, "api_url"),
        ({"callback_token": ""}, "callback_token"),
        ({"workspace": "relative"}, "workspace"),
        ({"checkout": {"kind": "clone"}}, "url"),
        ({"checkout": "clone"}, "checkout"),
        ({"setup": "uv sync"}, "setup"),
        ({"setup": [1]}, "setup"),
        ({"env": {"A": 1}}, "env"),
        ({"heartbeat_interval_seconds": 0}, "heartbeat_interval_seconds"),
        ({"listen": {"host": "127.0.0.1"}}, "listen"),
        ({"listen": [1]}, "listen"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=says):
        read_config(path, serving=True)


def _without(zipapp: Path, left_out: str, magic: bytes | None = None) -> Path:
    """Return a copy without the entries of one kind; ``magic`` is put in place of the compiled ones' own."""
    copy = zipapp.with_name(f"without{left_out}{zipapp.name}")
    with zipfile.ZipFile(zipapp) as whole, zipfile.ZipFile(copy, "w") as part:
        for name in whole.namelist():
            data = whole.read(name)
            if name == "__main__.py" or not name.endswith(left_out):
                part.writestr(name, magic + data[4:] if magic and name.endswith(".pyc") else data)
    return copy


def test_what_is_compiled_is_used_by_this_python_and_passed_over_by_others(tmp_path: Path) -> None:
    whole = build_zipapp(tmp_path / "agent.pyz", compiled=True)
    of_another = _without(whole, ".none", magic=b"\0\0\r\n")
    for zipapp, runs in (
        (whole, True),
        (_without(whole, ".py"), True),
        (of_another, True),
        (_without(of_another, ".py"), False),
    ):
        done = subprocess.run([sys.executable, "-I", zipapp, "--version"], capture_output=True, check=False)
        assert (done.returncode == 0) is runs, (zipapp, done)


def test_the_zipapp_is_reproducible_and_runs(tmp_path: Path) -> None:
    first, second = build_zipapp(tmp_path / "a.pyz"), build_zipapp(tmp_path / "b.pyz")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert first.stat().st_mode & 0o777 == 0o755
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pyz", "b.pyz"]
    # Isolated and without site-packages: nothing but the standard library may be needed.
    shown = subprocess.run([sys.executable, "-I", "-S", first, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip()
