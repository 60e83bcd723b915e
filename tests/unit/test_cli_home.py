"""The home's records and locks."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from activities.proc import start_time
from cli.errors import UsageError
from cli.home import FileLock, Home, HomeUnusable, StackRecord, locks_on, read_record, read_token
from cli.launch import hold_stack, is_only_user


def record(**changes: object) -> StackRecord:
    content = {
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "while_used": False,
        "api_url": "http://127.0.0.1:1",
        "ui_url": "http://127.0.0.1:2",
        "temporal_address": "127.0.0.1:3",
        "database_url": "postgresql:///x",
        "host_id": "here",
    }
    return StackRecord.model_validate(content | changes)


def test_a_record_is_alive_only_with_the_process_that_wrote_it(tmp_path: Path) -> None:
    """A pid that was given to another process since, or is a zombie's, does not count."""
    home = Home(tmp_path / "home")
    home.write_record(record())
    read = home.read_record()
    assert read == record()
    assert read.is_alive
    assert not record(started=1).is_alive
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        started = start_time(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not record(pid=process.pid, started=started).is_alive


def test_a_full_disk_is_no_fault_of_the_home_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with exit code 3, not with that of wrong usage."""

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(HomeUnusable, match=r"the disk of .*/home is full; free some space") as raised:
        Home(tmp_path / "home")
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff\xff", b"null"])
def test_a_broken_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stack.json").write_bytes(content)
    assert read_record(tmp_path) is None


def test_a_token_is_private_stable_and_made_anew_when_it_is_unusable(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    token = home.make_token()
    assert home.make_token() == token == read_token(home.path)
    path = home.path / "api-token"
    assert path.stat().st_mode & 0o077 == 0
    for broken in (b"", b"a b", b"\xff", b"\x00"):
        path.write_bytes(broken)
        assert read_token(home.path) is None
        assert len(home.make_token()) > 30


def test_a_home_is_private_and_refused_where_it_cannot_be(tmp_path: Path) -> None:
    assert Home(tmp_path / "a" / "b").path.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(HomeUnusable, match="TASKRUNNER_HOME"):
            Home(path)
    with pytest.raises(UsageError, match="TASKRUNNER_HOME"):
        Home(Path("/tmp/\udcff"))


@pytest.mark.parametrize("name", ["logs", "stack.lock"])
def test_a_part_of_a_home_that_cannot_be_used_is_named_with_what_mends_it(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path)
    home.users_lock.touch()
    part = tmp_path / name
    if name == "logs":
        part.rmdir()
        part.touch()
    else:
        part.mkdir()
    with pytest.raises(HomeUnusable, match=rf"TASKRUNNER_HOME: {part} is .*; run: mv {part} {part}.old"):
        FileLock(Home(tmp_path).stack_lock)


def test_locks_exclude_and_tell(tmp_path: Path) -> None:
    """S50: one stack, one start at a time, and the last user knows that it is the last."""
    home = Home(tmp_path / "home")
    first, second = FileLock(home.users_lock), FileLock(home.users_lock)
    first.shared()
    assert is_only_user(home)
    second.shared()
    assert not is_only_user(home)
    assert not second.try_exclusive()
    assert is_only_user(home)
    assert first.try_exclusive()
    assert not second.try_exclusive()
    first.close()
    assert second.try_exclusive()
    second.close()


def test_the_locks_of_a_file_are_told_without_touching_it(tmp_path: Path) -> None:
    assert locks_on(tmp_path / "missing") == []
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert locks_on(tmp_path / "lock") == []
    first.shared()
    second.shared()
    assert locks_on(tmp_path / "lock") == ["READ", "READ"]
    second.close()
    first.exclusive()
    assert locks_on(tmp_path / "lock") == ["WRITE"]
    assert list(tmp_path.iterdir()) == [tmp_path / "lock"]
    first.close()


def test_who_waits_for_the_stack_that_stops_says_so_at_once(tmp_path: Path) -> None:
    """S50"""
    home = Home(tmp_path)
    stopping, users = FileLock(home.users_lock), FileLock(home.users_lock)
    stopping.exclusive()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        stopping.close()

    hold_stack(home, users, say)
    assert said == [f"Waiting for the stack on {tmp_path} to stop"]
    assert is_only_user(home)
    hold_stack(home, users, say)
    assert len(said) == 1
    users.close()


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.shared()
    with subprocess.Popen(["sleep", "100"], close_fds=False) as child:
        lock.close()
        other = FileLock(tmp_path / "lock")
        assert other.try_exclusive()
        fcntl.flock(other.fd, fcntl.LOCK_UN)
        other.close()
        child.kill()
