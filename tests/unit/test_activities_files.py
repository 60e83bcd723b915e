"""Locks that go with what they guard, and folders that go whatever is in them."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from activities.files import exclusive, open_up, read_log_tail, remove_tree, write_private


async def test_a_lock_whose_folder_was_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    """S43: whoever waited while a workspace was destroyed must not hold a lock that nobody else sees."""
    lock = tmp_path / "workspace/lock"
    inside: list[str] = []

    async def hold(name: str) -> None:
        async with exclusive(lock, create=True) as fd:
            assert fd is not None
            assert os.path.samestat(os.fstat(fd), lock.stat())
            inside.append(name)
            assert len(inside) == 1
            await asyncio.sleep(0)
            inside.remove(name)
            lock.unlink()  # from here on it guards nothing
            with suppress(OSError):
                lock.parent.rmdir()

    async with asyncio.timeout(20):
        await asyncio.gather(*[hold(str(n)) for n in range(20)])


async def test_a_lock_leaves_no_empty_folder_behind(tmp_path: Path) -> None:
    async with exclusive(tmp_path / "workspace/lock", create=True):
        pass
    assert not (tmp_path / "workspace").exists()
    async with exclusive(tmp_path / "workspace/lock", create=False) as fd:
        assert fd is None
    async with exclusive(tmp_path / "workspace/lock", create=True):
        (tmp_path / "workspace/made").touch()
    assert (tmp_path / "workspace/made").exists()


async def test_a_program_that_inherited_the_lock_keeps_it_until_it_ends(tmp_path: Path) -> None:
    """S43: what a killed worker left running is never met by its successor."""
    lock = tmp_path / "workspace/lock"
    async with exclusive(lock, create=True) as fd:
        assert fd is not None
        (tmp_path / "workspace/made").touch()
        child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, pass_fds=[fd])
    taking = asyncio.create_task(_take(lock))
    _, waiting = await asyncio.wait([taking], timeout=0.1)
    assert waiting
    assert child.stdin
    child.stdin.close()
    async with asyncio.timeout(10):
        await taking
    await child.wait()


async def _take(lock: Path) -> None:
    async with exclusive(lock, create=True):
        pass


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that another user can reach too."""
    folder = Path(tempfile.mkdtemp(prefix="tr-files-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
    shutil.rmtree(folder)


def as_somebody(function: Callable[[], None]) -> int:
    """Run ``function`` in a process that is not root; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _hostile(folder: Path) -> None:
    inner = folder / "top/closed/deep"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    (folder / "outside").mkdir()
    (folder / "outside/kept").write_text("kept")
    (folder / "outside").chmod(0o555)
    (inner / "link").symlink_to(folder / "outside")
    inner.chmod(0o500)
    inner.parent.chmod(0o000)


def test_folders_that_were_closed_are_removed_and_links_are_not_followed(shared_folder: Path) -> None:
    def work() -> None:
        _hostile(shared_folder)
        remove_tree(shared_folder / "top")
        remove_tree(shared_folder / "top")
        assert not (shared_folder / "top").exists()

    assert as_somebody(work) == 0
    assert (shared_folder / "outside/kept").read_text() == "kept"
    assert (shared_folder / "outside").stat().st_mode & 0o777 == 0o555


def test_opening_up_makes_everything_below_readable(shared_folder: Path) -> None:
    def work() -> None:
        _hostile(shared_folder)
        open_up(shared_folder / "top")
        assert (shared_folder / "top/closed/deep/file").read_text() == "x"

    assert as_somebody(work) == 0
    assert (shared_folder / "outside").stat().st_mode & 0o777 == 0o555


def test_a_link_in_the_place_of_a_folder_is_removed_itself(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside/kept").exists()


def test_log_tails_hold_at_most_8_kib(tmp_path: Path) -> None:
    """S39"""
    log = tmp_path / "agent.log"
    assert read_log_tail(log) == ""
    log.write_bytes("ä".encode() * 20_000 + b"\0\xff end")
    tail = read_log_tail(log)
    assert len(tail.encode()) <= 8 * 1024
    assert tail.endswith("\ufffd end")
    assert "\0" not in tail


def test_private_files_are_private_from_the_start_and_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]
