"""The folder of the embedded stack, its disk, and what lies in it: a stack, keys; and templates."""

import contextlib
import fcntl
import os
import secrets
import shlex
import shutil
import socket
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from activities.processes import find_carrying
from api.templates import TemplateError, TemplateFolder
from cli.doctor.check import Check, broken, from_error, ok, warning
from cli.home import StackRecord, locks_on
from messages.file_errors import LASTING, trouble_with, user_name
from messages.keys import KeysError, load_keys
from messages.settings import Settings
from messages.timeouts import runtime_warning
from workers.children import STACK_MARKER
from workers.errors import StackError
from workers.temporal_server import broken_database, require_sqlite

GB = 10**9
LITTLE_BYTES = 5 * GB
TOO_FEW_BYTES = 500 * 10**6
LITTLE_INODES = 50_000
TOO_FEW_INODES = 2_000

_FOLDERS = ("logs", "workspaces", "records", "containers", "repositories")
_LOCKS = ("stack.lock", "start.lock", "users.lock")
_QUICK_BYTES = 32 * 1024 * 1024
"""The largest database that is read to its end."""

_ANOTHER = "export TASKRUNNER_HOME=… (a folder of yours on a local disk)"


def nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest one above it that is there and that we may look at."""
    while not _is_folder(path) and path != path.parent:
        path = path.parent
    return path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def check_home(home: Path) -> Check:
    """Check that the folder is there or can be made, is ours, and takes files, locks and sockets."""
    try:
        str(home).encode()
    except UnicodeEncodeError:
        return broken("home", repr(str(home)), "its name is not valid UTF-8", _ANOTHER)
    try:
        home.lstat()
        is_there = True
    except FileNotFoundError:
        is_there = False
    except OSError as e:
        return _broken(home, home, e)
    if not is_there:
        parent = nearest_folder(home)
        try:
            _use(parent)
        except OSError as e:
            return broken("home", f"{home}, not there yet", f"{parent} cannot be used: {e.strerror or e}", _ANOTHER)
        return ok("home", f"{home}, not there yet: the first start makes it")
    if not _is_folder(home):
        return broken("home", str(home), "not a folder", f"mv {shlex.quote(str(home))} {shlex.quote(f'{home}.old')}")
    try:
        _use(home)
    except OSError as e:
        return _broken(home, home, e)
    for path, use in _parts(home):
        try:
            use(path)
        except FileNotFoundError:
            continue  # the first start makes it
        except OSError as e:
            return _broken(home, path, e)
    return _check_owner(home, home.stat())


def _broken(home: Path, path: Path, error: OSError) -> Check:
    problem, mend = trouble_with(path, error, home=home)
    return broken("home", _shown(home), problem, mend.removeprefix("run: ") if error.errno in LASTING else _ANOTHER)


def _parts(home: Path) -> list[tuple[Path, Callable[[Path], None]]]:
    """Return what a stack uses in its home, and how; what it can make anew when it is not there."""
    folders = [home / name for name in _FOLDERS]
    files = [home / name for name in _LOCKS]
    with contextlib.suppress(OSError):
        files += sorted((home / "logs").glob("*.log"))
    return [*((folder, _use_folder) for folder in folders), *((file, _use_file) for file in files)]


def _use_folder(folder: Path) -> None:
    if not folder.exists():
        raise FileNotFoundError
    with tempfile.TemporaryFile(dir=folder):
        pass


def _use_file(file: Path) -> None:
    os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))


def _shown(home: Path) -> str:
    return str(home) if len(str(home)) <= 200 else f"{str(home)[:200]}…"


def _use(home: Path) -> None:
    """Raise ``OSError`` where the folder takes no file, no lock on it or no socket; nothing of them stays."""
    with tempfile.TemporaryFile(dir=home) as file:
        file.write(b"x")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By way of the descriptor, because a socket's whole path has 107 bytes at most.
        place = Path(f"/proc/self/fd/{folder}/.doctor-{secrets.token_hex(8)}")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.bind(str(place))
            finally:
                place.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _check_owner(home: Path, found: os.stat_result) -> Check:
    owner = user_name(found.st_uid)
    quoted = shlex.quote(str(home))
    if found.st_uid != os.geteuid():
        us = user_name(os.geteuid())
        return warning(
            "home", f"{home}, of {owner}", f"what {us} makes there may be of no use to {owner}", f"chown {us}: {quoted}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return warning("home", f"{home}, of {owner}", "others can write into it", f"chmod go-w {quoted}")
    return ok("home", f"{home}, of {owner}")


def check_stack(home: Path, record: StackRecord | None) -> Check:
    """Check which stack runs on the home; where none does, what an earlier one left: its database, its servers."""
    if record is not None and record.is_alive:
        return ok("stack", f"runs (process {record.pid}, {record.api_url})")
    if locks_on(home / "stack.lock"):
        return ok("stack", "one is starting or stopping just now")
    try:
        require_sqlite(home / "temporal.db")
        with contextlib.suppress(OSError):  # no place for a copy
            _read_whole(home / "temporal.db")
    except StackError as e:
        return from_error("stack", "none runs", e)
    left = find_carrying(STACK_MARKER, str(home))
    if left:
        pids = " ".join(str(process.pid) for process in left)
        problem = f"an earlier one ended and left servers behind (processes {pids}); the next start ends them"
        return warning("stack", "none runs", problem, f"kill {pids}")
    return ok("stack", "none runs: taskrunner run starts one, taskrunner dev keeps one")


def _read_whole(database: Path) -> None:
    """Raise ``StackError`` where a database, which nobody uses, is broken inside; a large one is not read."""
    files = [file for file in (database, database.with_name(f"{database.name}-wal")) if file.exists()]
    if database not in files or sum(file.stat().st_size for file in files) > _QUICK_BYTES:
        return
    # In a copy: SQLite itself changes what it reads together with its log.
    with tempfile.TemporaryDirectory(prefix="taskrunner-doctor-") as folder:
        for file in files:
            shutil.copyfile(file, Path(folder, file.name))
        try:
            with closing(sqlite3.connect(Path(folder, database.name))) as connection:
                [told] = connection.execute("PRAGMA quick_check(1)").fetchone()
                has_tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'namespaces'").fetchone()
        except sqlite3.Error as e:
            raise broken_database(database, str(e)) from e
    if told != "ok":
        raise broken_database(database, " ".join(str(told).split())[:200])
    if not has_tables:
        raise broken_database(database, "it has none of Temporal's tables")


def check_keys(settings: Settings) -> Check:
    """Check the installation's keys."""
    path = settings.keys_path
    if settings.keys_file is None and not os.path.lexists(path):
        return ok("keys", f"{path}, not there yet: the first start makes it")
    try:
        keys = load_keys(path)
    except KeysError as e:
        found = "named by TASKRUNNER_KEYS_FILE" if settings.keys_file else "in the home"
        return from_error("keys", found, e)  # whose text has the path
    return ok("keys", f"{path}, installation {keys.installation_id}")


def check_templates(folder: Path | None) -> Check:
    """Check that the templates can be read, and that each can be used."""
    found = f"{folder} and the built-in ones" if folder else "the built-in ones"
    templates = TemplateFolder(folder)
    try:
        usable, bad = templates.all(), templates.broken()
    except TemplateError as e:
        return from_error("templates", str(folder), e)
    found = f"{', '.join(template.name for template in usable)} ({found})"
    if bad:
        file, why = min(bad.items())
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        return warning("templates", found, f"{file} cannot be used{more}: {why}", f"correct {folder}/{file}")
    for template in usable:
        if doubt := runtime_warning(template):
            problem, _, mend = doubt.partition("; ")
            return warning("templates", found, f"{template.name}: {problem}", mend)
    return ok("templates", found)


def check_disk(home: Path, *, little: int = LITTLE_BYTES, too_few: int = TOO_FEW_BYTES) -> Check:
    """Check the free space, in bytes, and inodes of the home's file system; file systems without inodes say 0 of 0."""
    folder = nearest_folder(home)
    try:
        space = os.statvfs(folder)
    except OSError as e:
        return broken("disk", str(folder), *trouble_with(folder, e, home=home))
    free = space.f_bavail * space.f_frsize
    inodes = space.f_favail if space.f_files else None
    found = f"{free / GB:.1f} GB free in {folder}" if free >= GB else f"{free // 10**6} MB free in {folder}"
    mend = f"df -h {shlex.quote(str(folder))}, then free some space, or set TASKRUNNER_HOME"
    if free < too_few:
        return broken("disk", found, f"less than {too_few // 10**6} MB: servers do not start, or stop", mend)
    if inodes is not None and inodes < TOO_FEW_INODES:
        return broken("disk", f"{found}, {inodes} inodes", "hardly any file can be made", mend.replace("-h", "-i"))
    if free < little:
        return warning("disk", found, f"less than {little / GB:g} GB: checkouts and databases grow", mend)
    if inodes is not None and inodes < LITTLE_INODES:
        return warning("disk", f"{found}, {inodes} inodes", "a large checkout may not fit", mend.replace("-h", "-i"))
    return ok("disk", found)
