"""What is wrong with a file or folder of ours, and what mends it, in the words of all who meet it."""

import errno
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Passes when somebody has freed some."""

LASTING = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.EROFS,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""Does not pass until somebody has changed something: trying again does not help."""


class Trouble(NamedTuple):
    """What is wrong, and what mends it: a command, after ``run: ``, wherever there is one."""

    problem: str
    mend: str

    def __str__(self) -> str:
        """Return both as one line."""
        return f"{self.problem}; {self.mend}"


def trouble_with(path: Path | str, error: OSError, *, home: Path | None = None) -> Trouble:
    """Return what ``error``, which came of using ``path``, means for it or for the folder above it that is at fault.

    Commands that move or give away are for what lies in ``home`` alone, and only where a stack has been at home there:
    nobody is to be told to give us all of ``/etc``.
    """
    path = Path(path)
    culprit = _culprit(path, error)
    is_ours = home is not None and culprit.is_relative_to(home) and _has_been_used(home)
    if error.errno in NO_SPACE:
        return Trouble(
            f"the disk of {path} is full", "free some space, or set TASKRUNNER_HOME to a folder on another disk"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return _not_permitted(culprit, error, is_ours=is_ours)
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return Trouble(f"{culprit} is not a folder", _moving_away(culprit, is_ours=is_ours))
    if error.errno == errno.EISDIR:
        return Trouble(f"{culprit} is a folder where a file has to be", _moving_away(culprit, is_ours=is_ours))
    return Trouble(f"{_shown(path)} cannot be used: {error.strerror or error}", _ANOTHER)


_OURS = ("stack.lock", "start.lock", "users.lock", "keys.json")


def _has_been_used(home: Path) -> bool:
    return any(os.path.lexists(home / name) for name in _OURS)


_ANOTHER = "set TASKRUNNER_HOME to another folder"


def _shown(path: Path) -> str:
    return str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"


def _culprit(path: Path, error: OSError) -> Path:
    """Return the first part on the way to ``path`` that explains the error; ``path`` where none does."""
    for part in (*reversed(path.parents), path):
        try:
            mode = part.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            # What is missing cannot be made in the folder around it.
            return part.parent if error.errno in {errno.EACCES, errno.EPERM, errno.ENOTDIR} else path
        except PermissionError:
            return part.parent
        except OSError:
            return part
        if error.errno in {errno.ENOTDIR, errno.EEXIST} and not stat.S_ISDIR(mode):
            return part
        if error.errno in {errno.EACCES, errno.EPERM} and stat.S_ISDIR(mode) and not os.access(part, os.X_OK):
            return part
    # The last folder may be passed, and the file in it be used, but none be made or replaced there.
    is_parent = error.errno in {errno.EACCES, errno.EPERM} and os.access(path, os.R_OK | os.W_OK)
    return path.parent if is_parent and not os.access(path.parent, os.W_OK) else path


def _not_permitted(culprit: Path, error: OSError, *, is_ours: bool) -> Trouble:
    try:
        found = culprit.stat()
    except OSError:
        return Trouble(f"{culprit} cannot be used: {error.strerror}", _ANOTHER)
    us, quoted, sudo = user_name(os.geteuid()), shlex.quote(str(culprit)), "" if os.geteuid() == 0 else "sudo "
    bits, needed = ("rwx", 0o700) if stat.S_ISDIR(found.st_mode) else ("rw", 0o600)
    opening = f"chmod u+{bits} {quoted}" if found.st_mode & needed != needed else ""
    if found.st_uid != os.geteuid():
        giving = f"{sudo}chown -R {us} {quoted}" + (f" && {opening}" if opening else "")
        return Trouble(
            f"{culprit} cannot be used by {us}: it belongs to {user_name(found.st_uid)}",
            f"run: {giving}" if is_ours else f"{_ANOTHER}, or give it to {us} (chown) where only {us} needs it",
        )
    return Trouble(f"{culprit} cannot be used: {error.strerror}", f"run: {opening}" if opening else _ANOTHER)


def _moving_away(path: Path, *, is_ours: bool) -> str:
    command = f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"
    return f"run: {command}" if is_ours else f"move it away, or {_ANOTHER}"


def user_name(uid: int) -> str:
    """Return a user's name, its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
