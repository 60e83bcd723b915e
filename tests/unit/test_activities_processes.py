"""Processes of a workspace are found, recognised and ended, whatever they do to get away."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities import processes
from activities.processes import ProcessId, clean_environment, end_all, find_all, find_marked, identify, is_alive, start
from messages.names import COMPUTE_MARKER

NAME = f"tr-processes-{os.getpid()}"


class Started:
    """A process under test and the file into which it and its children write their pids."""

    def __init__(self, folder: Path, script: str, *, expected: int) -> None:
        self.pids_file = folder / "pids"
        os.mkfifo(folder / "go")
        env = {
            **clean_environment(os.environ),
            COMPUTE_MARKER: NAME,
            "PIDS": str(self.pids_file),
            "GO": str(folder / "go"),
        }
        argv = [sys.executable, "-c", _COMMON + textwrap.dedent(script)]
        self.main = start(argv, cwd=folder, env=env, log=folder / "log")
        with (folder / "go").open() as fifo:  # each process writes a line once it stands as the test wants it
            self.all = [_identified(int(fifo.readline())) for _ in range(expected)]
            self._keep = fifo

    def alive(self) -> list[ProcessId]:
        return [process for process in self.all if is_alive(process)]


_COMMON = """
import os, signal, sys, time
def ready():
    fd = os.open(os.environ["GO"], os.O_WRONLY)
    os.write(fd, b"%d\\n" % os.getpid())
    signal.pause()
    os._exit(0)
"""


def _identified(pid: int) -> ProcessId:
    process = identify(pid)
    assert process is not None
    return process


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    for process in find_marked(NAME):
        os.kill(process.pid, signal.SIGKILL)


async def test_a_double_forked_daemon_is_found_and_ended(tmp_path: Path) -> None:
    started = Started(
        tmp_path,
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.chdir("/"); ready()
            os._exit(0)
        ready()
        """,
        expected=2,
    )
    assert set(find_marked(NAME)) == set(started.all)
    await end_all(NAME, main=started.main, grace_seconds=5)
    assert started.alive() == []


async def test_a_child_that_dropped_the_marker_is_ended_with_its_parent(tmp_path: Path) -> None:
    started = Started(
        tmp_path,
        """
        if os.fork() == 0:
            os.setsid()
            go = os.environ["GO"]
            os.execve(sys.executable, [sys.executable, "-c", 
                "import os, signal;"
                "os.write(os.open(os.environ['GO'], os.O_WRONLY), b'%d\\\\n' % os.getpid()); signal.pause()"],
                {"GO": go})
        ready()
        """,
        expected=2,
    )
    assert len(find_marked(NAME)) == 1
    assert set(find_all(NAME)) == set(started.all)
    await end_all(NAME, main=started.main, grace_seconds=5)
    assert started.alive() == []


async def test_what_ignores_term_is_killed_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_ORPHANS_GRACE_SECONDS", 0.1)
    script = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            ready()
        ready()
        """
    started = Started(tmp_path, script, expected=2)
    await end_all(NAME, main=started.main, grace_seconds=0.1)
    assert started.alive() == []
    assert processes.exit_code(started.main) == -signal.SIGKILL


async def test_main_is_asked_before_the_others_are_touched(tmp_path: Path) -> None:
    started = Started(
        tmp_path,
        """
        child = os.fork()
        if child == 0:
            ready()
        def stop(*_):
            os.kill(child, 0)  # still there: fails otherwise
            os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
            os._exit(7)
        signal.signal(signal.SIGTERM, stop)
        ready()
        """,
        expected=2,
    )
    await end_all(NAME, main=started.main, grace_seconds=5)
    assert processes.exit_code(started.main) == 7
    assert started.alive() == []


async def test_ending_what_does_not_exist_is_fine() -> None:
    await end_all(NAME, main=None, grace_seconds=1)
    await end_all(NAME, main=ProcessId(pid=os.getpid(), started=1, boot_id=processes.boot_id()), grace_seconds=1)


def test_a_process_is_known_by_its_start_time_and_boot() -> None:
    me = _identified(os.getpid())
    assert is_alive(me)
    assert not is_alive(me.model_copy(update={"started": me.started + 1}))
    assert not is_alive(me.model_copy(update={"boot_id": "another"}))


def test_a_signal_never_reaches_another_process_under_the_same_pid() -> None:
    me = _identified(os.getpid())
    assert not processes.send_signal(me.model_copy(update={"started": me.started - 1}), signal.SIGKILL)


def test_a_zombie_has_ended() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identify(child.pid) is None


async def test_the_end_of_a_process_is_awaited_and_its_exit_code_known(tmp_path: Path) -> None:
    process = start(["sh", "-c", "exit 3"], cwd=tmp_path, env=clean_environment(os.environ), log=tmp_path / "log")
    assert await processes.wait_for_exit(process, 10)
    assert processes.exit_code(process) == 3
    assert await processes.wait_for_exit(process, 10)


async def test_waiting_for_a_living_process_ends_with_the_timeout() -> None:
    assert not await processes.wait_for_exit(_identified(os.getpid()), 0.01)


def test_a_started_process_has_its_own_session_a_log_and_no_pipes(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        script = "ls -l /proc/self/fd; ps -o sid= -p $$; echo $$; echo problem >&2"
        process = start(["sh", "-c", script], cwd=tmp_path, env=clean_environment(os.environ), log=tmp_path / "log")
        asyncio.run(_ended(process))
        log = (tmp_path / "log").read_text()
        assert "pipe:" not in log
        assert "problem" in log
        assert oct((tmp_path / "log").stat().st_mode & 0o777) == "0o600"
        assert log.split()[-3] == log.split()[-2] == str(process.pid)
    finally:
        os.close(read)
        os.close(write)


async def _ended(process: ProcessId) -> None:
    assert await processes.wait_for_exit(process, 10)


def test_the_workers_secrets_are_not_passed_on() -> None:
    """S37"""
    kept = {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "XDG_RUNTIME_DIR": "/x", "https_proxy": "p", "NO_PROXY": "n",
    }  # fmt: skip
    dropped = {
        "ANTHROPIC_API_KEY": "k", "HCLOUD_TOKEN": "k", "TASKRUNNER_DATABASE_URL": "k", "GIT_DIR": "/r", "MY_PATH": "x",
        "GIT_ASKPASS": "/x", "SSH_AUTH_SOCK": "/s", "GIT_SSH_COMMAND": "ssh -i k", "GIT_CONFIG_COUNT": "1",
        "LD_PRELOAD": "x", "PYTHONPATH": "x", COMPUTE_MARKER: "tr-other-1", "PATHX": "x",
    }  # fmt: skip
    assert clean_environment({**kept, **dropped}) == kept


async def test_how_a_process_ended_is_known_after_the_next_one_was_started(tmp_path: Path) -> None:
    """S14: on a busy host the next workspace is there before anybody has asked about this one."""
    first = processes.start(["/bin/sh", "-c", "exit 3"], cwd=tmp_path, env={}, log=tmp_path / "log")
    assert await processes.wait_for_exit(first, 10)
    for _ in range(3):
        later = processes.start(["/bin/true"], cwd=tmp_path, env={}, log=tmp_path / "log")
        assert await processes.wait_for_exit(later, 10)
    assert processes.exit_code(first) == 3
