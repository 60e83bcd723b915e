"""What the doctor says of a home, of all that lies in it, and of what is broken there."""

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cli.doctor import home as homes
from cli.doctor import postgres as databases
from cli.doctor.check import Check, Status
from cli.doctor.programs import Programs
from cli.home import FileLock
from messages.keys import create_keys
from messages.settings import Settings
from tests.support.cli import dead_stack
from tests.support.doctor import is_told
from tests.support.nobody import as_nobody
from tests.support.temporal import dev_server_path, free_port
from workers.children import STACK_MARKER
from workers.errors import StackError
from workers.postgres import start_postgres
from workers.temporal_server import start_temporal

pytest_plugins = ["tests.support.doctor"]


def test_a_home_has_to_take_files_locks_and_sockets(tmp_path: Path) -> None:
    home = tmp_path / "home"
    is_told(homes.check_home(home / "deep" / "er"), Status.OK, "not there yet")
    assert list(tmp_path.iterdir()) == []
    home.mkdir(mode=0o700)
    is_told(homes.check_home(home), Status.OK, str(home))
    assert list(home.iterdir()) == []
    long = home / ("x" * 120)
    long.mkdir()
    is_told(homes.check_home(long), Status.OK)  # longer than the path of a socket may be
    home.chmod(0o770)
    is_told(homes.check_home(home), Status.WARNING, f"chmod go-w {home}")


def test_homes_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    is_told(homes.check_home(file), Status.BROKEN, "not a folder", f"mv {file} {file}.old")
    is_told(homes.check_home(file / "below"), Status.BROKEN, f"{file} is not a folder", "move it away")
    is_told(homes.check_home(tmp_path / ("x" * 300)), Status.BROKEN, "too long")
    is_told(homes.check_home(Path("/proc/home")), Status.BROKEN, "/proc")
    is_told(homes.check_home(Path("/proc/self")), Status.BROKEN, "/proc/self")
    is_told(homes.check_home(Path("/tmp/\udcff")), Status.BROKEN, "UTF-8")
    with TemporaryDirectory(prefix="tr-home-") as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_told(as_nobody(lambda: homes.check_home(folder)), Status.BROKEN, f"{folder} cannot be used")
        is_told(as_nobody(lambda: homes.check_home(folder / "home")), Status.BROKEN, "Permission denied")
        folder.chmod(0o777 if os.geteuid() == 0 else 0o700)
        if os.geteuid() == 0:
            is_told(as_nobody(lambda: homes.check_home(folder)), Status.WARNING, "of root", "chown")


def test_servers_of_a_dead_stack_are_told(tmp_path: Path) -> None:
    record = dead_stack()
    is_told(homes.check_stack(tmp_path, record), Status.OK, "none runs")
    (tmp_path / "temporal.db").write_text("this is no database")
    is_told(homes.check_stack(tmp_path, record), Status.BROKEN, "temporal.db", "move it away")
    (tmp_path / "temporal.db").unlink()
    left = subprocess.Popen(["sleep", "1000"], env={**os.environ, STACK_MARKER: str(tmp_path)})
    try:
        is_told(homes.check_stack(tmp_path, record), Status.WARNING, f"kill {left.pid}")
        (tmp_path / "stack.lock").touch()
        is_told(homes.check_stack(tmp_path, record), Status.WARNING)
        lock = FileLock(tmp_path / "stack.lock")
        lock.exclusive()
        is_told(homes.check_stack(tmp_path, record), Status.OK, "starting or stopping")
        lock.close()
    finally:
        left.kill()
        left.wait()


def test_keys_have_to_be_private_and_whole(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, keys_file=None)
    path = tmp_path / "keys.json"
    is_told(homes.check_keys(settings), Status.OK, "not there yet")
    named = settings.model_copy(update={"keys_file": path})
    is_told(homes.check_keys(named), Status.BROKEN, str(path), "TASKRUNNER_KEYS_FILE")
    keys = create_keys(path)
    is_told(homes.check_keys(settings), Status.OK, keys.installation_id)
    path.chmod(0o644)
    is_told(homes.check_keys(settings), Status.BROKEN, f"chmod 600 {path}")
    path.chmod(0o600)
    for content in (b"{", b"\xff\xfe", path.read_bytes().replace(b'"k1":', b'"k2":')):
        path.write_bytes(content)
        check = homes.check_keys(settings)
        is_told(check, Status.BROKEN, f"{path} is broken" if content != b"\xff\xfe" else "broken")
        assert "whole file" not in repr(check)


def test_templates_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    is_told(homes.check_templates(None), Status.OK, "local, worktree")
    is_told(homes.check_templates(tmp_path / "none"), Status.BROKEN, "TASKRUNNER_TEMPLATES")
    (tmp_path / "mine.yaml").write_text("name: mine\nbackend: local\nruntime: hermez\n")
    is_told(homes.check_templates(tmp_path), Status.WARNING, "mine", "'hermez'", "did you mean 'hermes'?")
    (tmp_path / "odd.yaml").write_text("[")
    is_told(homes.check_templates(tmp_path), Status.WARNING, "odd.yaml", "not valid YAML")


def test_a_disk_that_fills_is_told_in_time(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    is_told(homes.check_disk(tmp_path / "not" / "there", little=0, too_few=0), Status.OK, str(tmp_path))
    is_told(homes.check_disk(tmp_path, little=free * 2, too_few=0), Status.WARNING, "df -h")
    is_told(homes.check_disk(tmp_path, little=free * 2, too_few=free * 2), Status.BROKEN, "df -h")


@pytest.fixture
def used_home() -> Iterator[Path]:
    """A home in which a stack has been, which everybody may pass."""
    with TemporaryDirectory(prefix="tr-home-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "stack.lock").touch()
        (folder / "logs").mkdir()
        yield folder


def do(mend: str | None) -> None:
    """Do what the doctor says, as root where it asks for that."""
    assert mend
    command = re.search(r"(?:^|: )((?:sudo )?(?:mv|cp|chmod|chown) .*)", mend)
    assert command, mend
    subprocess.run(["/bin/sh", "-c", command[1].replace("sudo ", "")], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["logs", "workspaces", "records", "stack.lock"])
def test_parts_of_a_home_of_the_wrong_kind_are_told(used_home: Path, name: str) -> None:
    """Found wrong, mended by the very command that is told, found right."""
    part = used_home / name
    is_told(homes.check_home(used_home), Status.OK)
    if name in {"stack.lock"}:
        part.unlink()
        part.mkdir()
        (used_home / "users.lock").touch()
    else:
        part.rmdir() if part.exists() else None
        part.touch()
    check = homes.check_home(used_home)
    is_told(check, Status.BROKEN, f"{part} is ", f"mv {part} {part}.old")
    do(check.mend)
    is_told(homes.check_home(used_home), Status.OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to another user")
@pytest.mark.parametrize("name", ["logs", "workspaces", "stack.lock", "logs/stack.log"])
def test_parts_of_a_home_that_belong_to_another_user_are_told(used_home: Path, name: str) -> None:
    os.chown(used_home, 65534, 65534)
    for each in used_home.iterdir():
        os.chown(each, 65534, 65534)
    part = used_home / name
    if name == "workspaces":
        part.mkdir()
    elif name == "logs/stack.log":
        part.touch()
    os.chown(part, 0, 0)
    part.chmod(0o600)
    check = as_nobody(lambda: homes.check_home(used_home))
    is_told(
        check, Status.BROKEN, f"{part} cannot be used by nobody: it belongs to root", f"sudo chown -R nobody {part}"
    )
    do(check.mend)
    is_told(as_nobody(lambda: homes.check_home(used_home)), Status.OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to another user")
async def test_a_database_that_would_not_start_is_told(used_home: Path) -> None:
    """Found broken, mended by the very command that is told, found right, and started."""
    with closing(Programs(5.0)) as asked:

        async def check() -> Check:
            return await asyncio.to_thread(databases.check_embedded, asked, used_home, None)

        await (await start_postgres(used_home)).child.stop()
        data = used_home / "postgres"
        is_told(await check(), Status.OK)
        for damage, words in (
            (lambda: os.truncate(data / "global/pg_control", 0), "pg_control makes no sense"),
            (lambda: (data / "global/pg_control").write_bytes(os.urandom(8192)), "pg_control makes no sense"),
            (lambda: shutil.rmtree(data / "pg_wal"), "pg_wal is missing"),
            (lambda: (data / "postgresql.conf").write_bytes(b"x y z"), "postgresql.conf is broken"),
            (lambda: os.chown(data, 65533, 65533), f"{data} belongs to another user"),
            (lambda: os.chown(data / "global/pg_control", 65533, 65533), "pg_control belongs to another user"),
            (lambda: data.chmod(0o755), "can be used by others"),
        ):
            damage()
            found = await check()
            is_told(found, Status.BROKEN, words)
            with pytest.raises(StackError, match=str(data)) as refused:
                await start_postgres(used_home)
            assert "Traceback" not in str(refused.value)
            do(found.mend)
            shutil.rmtree(used_home / "postgres.old", ignore_errors=True)
            await (await start_postgres(used_home)).child.stop()
            is_told(await check(), Status.OK)


def test_a_file_in_the_place_of_the_database_is_moved_away(asked: Programs, used_home: Path) -> None:
    data = used_home / "postgres"
    data.touch()
    is_told(databases.check_embedded(asked, used_home, None), Status.BROKEN, "not a folder", f"mv {data} {data}.old")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to another user")
def test_what_we_may_not_read_is_given_to_us_and_not_thrown_away(asked: Programs, used_home: Path) -> None:
    """The data is whole, and a new installation or an empty database would mend nothing."""
    (used_home / "postgres").mkdir(mode=0o700)
    settings = Settings(home=used_home, keys_file=None)
    create_keys(settings.keys_path)
    (used_home / "temporal.db").touch(mode=0o600)
    for make, path in (
        (lambda: databases.check_embedded(asked, used_home, None), used_home / "postgres"),
        (lambda: homes.check_stack(used_home, dead_stack()), used_home / "temporal.db"),
        (lambda: homes.check_keys(settings), used_home / "keys.json"),
    ):
        check = as_nobody(make)
        is_told(check, Status.BROKEN, f"{path} cannot be used by nobody: it belongs to root")
        assert check.mend == f"sudo chown -R nobody {path}"


def test_a_home_that_we_may_not_look_into_leaves_nothing_to_report_as_a_defect() -> None:
    with TemporaryDirectory(prefix="tr-home-") as name:  # closed to others
        for make in (homes.check_home, homes.check_disk):
            assert "defect" not in repr(as_nobody(lambda make=make: make(Path(name) / "home")))
        if os.geteuid() == 0:
            is_told(as_nobody(lambda: homes.check_home(Path(name) / "home")), Status.BROKEN, name, "belongs to root")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


async def test_a_broken_file_of_temporals_is_told(used_home: Path) -> None:
    database, dead = used_home / "temporal.db", dead_stack()
    server = await start_temporal(Path(dev_server_path()), used_home, port=free_port(), ui_port=free_port())
    await server.child.stop()
    for is_checkpointed in (False, True):  # what a server leaves has its log beside it
        if is_checkpointed:
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = contents(used_home)
        is_told(await asyncio.to_thread(homes.check_stack, used_home, dead), Status.OK)
        assert contents(used_home) == before
    whole = database.read_bytes()
    for content, words in (
        (b"", "it is empty"),
        (whole[: len(whole) // 2], "it is cut off"),
        (whole[:8192] + os.urandom(len(whole) - 8192), "is not a database that Temporal can use"),
    ):
        database.write_bytes(content)
        check = await asyncio.to_thread(homes.check_stack, used_home, dead)
        is_told(check, Status.BROKEN, words, "without the tasks that have not ended")
        with pytest.raises(StackError, match=rf"{database} is not a database that Temporal can use"):
            await start_temporal(Path(dev_server_path()), used_home, port=free_port(), ui_port=free_port())
        do(check.mend)
        assert not database.exists()
