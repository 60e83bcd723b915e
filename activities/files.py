"""Files of a workspace on this host: locks, small JSON files, log tails, and taking a folder down whatever is in it."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from activities.threads import in_daemon_thread, until_done
from messages.callbacks import LOG_TAIL_BYTES, log_tail


def _lock(path: Path, create: bool, wait: bool) -> int | None:
    while True:
        try:
            if create:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if not create:
                return None
            continue  # the folder went between the two calls
        except NotADirectoryError:
            if create:
                raise
            return None  # nothing can be below a file
        except FileExistsError:
            if path.parent.exists() and not path.parent.is_dir():
                raise
            continue  # it went while mkdir looked
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, fd):
                return fd
            # Whoever held it before removed it: look again.
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Tell whether the open file is the one that others find under its path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _unlock(path: Path, fd: int | None) -> None:
    if fd is None:
        return
    with contextlib.suppress(OSError):
        if _is_at(path, fd) and list(path.parent.iterdir()) == [path]:  # nothing came of it
            path.unlink()
            path.parent.rmdir()
    os.close(fd)


@asynccontextmanager
async def exclusive(path: Path, *, create: bool) -> AsyncGenerator[int | None]:
    """Hold ``path`` locked against every other process and task; yields the lock's descriptor.

    The lock lives in the folder that it guards and may go with it; one that holds nothing else goes with the lock.
    Without ``create``, a folder or file that is not there yields None. A program that inherits the descriptor keeps the
    lock until it ends too, so that what a killed worker leaves running is never met by its successor.
    """
    trying = asyncio.ensure_future(asyncio.to_thread(_lock, path, create, wait=False))
    try:
        fd = await until_done(trying)
    except BlockingIOError:
        fd = await in_daemon_thread(lambda: _lock(path, create, wait=True), undo=lambda fd: _unlock(path, fd))
    except asyncio.CancelledError:
        if trying.exception() is None:
            _unlock(path, trying.result())
        raise
    try:
        yield fd
    finally:
        _unlock(path, fd)


def write_private(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace ``path`` at once by a file that only its owner can read; ``durable``: it survives a power failure."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as e:
        e.filename = str(path)  # whose disk is full is all that helps
        raise
    partial.replace(path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_log_tail(path: Path) -> str:
    """Return the last 8 KiB of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log_tail(file.read().decode("utf-8", "replace"))
    except OSError:
        return ""


def is_real_folder(path: Path) -> bool:
    """Tell whether ``path`` is a folder and no link: through a link, somebody else's files would be saved."""
    try:
        return stat.S_ISDIR(path.stat(follow_symlinks=False).st_mode)
    except OSError:
        return False


def open_up(folder: Path) -> None:
    """Make every folder below ``folder`` readable and writable for its owner, never following a symbolic link."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            mode = current.stat(follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                continue
            if mode & 0o700 != 0o700:
                current.chmod(mode | 0o700)
            with os.scandir(current) as entries:
                pending.extend(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue  # what cannot be opened is reported by whoever needs it


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it: read-only folders too, symbolic links as such; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # something below went by itself
            remove_tree(path)
    except PermissionError:
        open_up(path)
        shutil.rmtree(path)
