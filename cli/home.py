"""The embedded stack's folder (``TASKRUNNER_HOME``): its files, and the locks by which processes meet there.

``stack.lock``: held exclusively by the one stack of this home while it lives.
``start.lock``: held exclusively while a stack starts, so that others wait for it instead of starting a second one.
``users.lock``: held shared by every ``taskrunner run``; a stack that one of them started ends when nobody holds it.

A command that reads the records while no stack runs (``cli/offline.py``) holds ``start.lock`` and ``stack.lock``.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from activities.proc import start_time
from cli.errors import Unreachable, UsageError
from messages.defaults import token_path
from messages.file_errors import trouble_with

_SHORTAGE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What another folder would not mend."""

DOORS_FILE = "doors.json"


class StackRecord(BaseModel):
    """``stack.json``: the stack that runs, or ran last. ``started`` in ticks since boot; ``host_id`` its worker's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    started: int
    while_used: bool
    api_url: str
    ui_url: str
    temporal_address: str
    database_url: str
    host_id: str

    @property
    def is_alive(self) -> bool:
        """Whether the very process that wrote the record still lives."""
        return start_time(self.pid) == self.started


class HomeUnusable(Unreachable):
    """The home cannot be looked into, or written; the text names the part that is at fault, and what mends it."""


@contextlib.contextmanager
def told_of_home(home: Path, part: Path | None = None) -> Generator[None]:
    """Turn what the system says of a ``part`` of a home, or of the home itself, into ``HomeUnusable``."""
    try:
        yield
    except OSError as e:
        if e.errno in _SHORTAGE:
            raise HomeUnusable(f"TASKRUNNER_HOME: {part or home} cannot be written: {e.strerror}") from e
        raise HomeUnusable(f"TASKRUNNER_HOME: {trouble_with(part or home, e, home=home)}") from e


def require_usable(home: Path) -> None:
    """Raise ``HomeUnusable`` for a home that is there, or in a place where none can be, and that takes no file."""
    with told_of_home(home):
        try:
            home.stat()
        except FileNotFoundError:
            return
        with tempfile.TemporaryFile(dir=home):
            pass


class Home:
    """A folder that exists, is ours to write, and holds the state of one embedded stack."""

    def __init__(self, path: Path) -> None:
        """Make the folder where it is missing.

        Raises ``UsageError`` for a name that none can have, and ``HomeUnusable``.
        """
        self.path = path
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UsageError(f"TASKRUNNER_HOME: {str(path)!r} is not valid UTF-8; name another folder") from None
        for folder in (path, path / "logs"):
            with told_of_home(path, folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass

    @property
    def log(self) -> Path:
        """The log of the stack itself."""
        return self.path / "logs" / "stack.log"

    @property
    def stack_lock(self) -> Path:
        """See the module."""
        return self.path / "stack.lock"

    @property
    def start_lock(self) -> Path:
        """See the module."""
        return self.path / "start.lock"

    @property
    def users_lock(self) -> Path:
        """See the module."""
        return self.path / "users.lock"

    def read_record(self) -> StackRecord | None:
        """Return the record of the last stack; None where there is none that can be read."""
        return read_record(self.path)

    def write_record(self, record: StackRecord) -> None:
        """Replace the record in one step."""
        path = self.path / "stack.json"
        with told_of_home(self.path, path):
            replace_file(path, record.model_dump_json(indent=2) + "\n")

    def make_token(self) -> str:
        """Return the API token of this home, made where there is no usable one."""
        if (token := read_token(self.path)) is None:
            token = f"tr_{secrets.token_urlsafe(32)}"
            with told_of_home(self.path, token_path(self.path)):
                replace_file(token_path(self.path), token + "\n")
        return token


def waiting_for_start(home: Home) -> str:
    """Return what is said where ``start.lock`` has to be waited for."""
    return f"Waiting for another taskrunner that starts its servers on {home.path}"


def waiting_for_stop(home: Home) -> str:
    """Return what is said where a stack that ends has to be waited for."""
    return f"Waiting for the stack on {home.path} to stop"


def read_record(home: Path) -> StackRecord | None:
    """Return the record of the last stack of a home that need not exist."""
    try:
        return StackRecord.model_validate(json.loads((home / "stack.json").read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None


def has_records(home: Path) -> bool:
    """Tell whether a stack has ever kept records in a home, which need not exist, as far as we may look into it."""
    try:
        return (home / "postgres").exists()
    except OSError:
        return False


def read_token(home: Path) -> str | None:
    """Return the API token of a home that need not exist."""
    try:
        token = token_path(home).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return token if token.isascii() and token.isprintable() and " " not in token and token else None


def read_doors(home: Path) -> dict[str, int]:
    """Return at which port the stack on ``home``, or the last one there, answers containers, by its address."""
    try:
        found = json.loads((home / DOORS_FILE).read_text())
        return {str(address): int(port) for address, port in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def replace_file(path: Path, text: str) -> None:
    """Replace a file of the home in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def locks_on(path: Path) -> list[str]:
    """Return how the file is locked (``flock``), without touching it: ``READ`` (shared) or ``WRITE`` for each lock.

    Empty where that cannot be found out, too.
    """
    found: list[tuple[str, str]] = []
    try:
        file = path.stat()
        with open("/proc/locks") as locks:  # noqa: PTH123
            for fields in map(str.split, locks):
                # "1: FLOCK  ADVISORY  READ 4711 08:01:131 0 EOF"; those that wait have an arrow before FLOCK
                if fields[1] == "FLOCK":
                    device, _, inode = fields[5].rpartition(":")
                    found += [(device, fields[3])] if inode == str(file.st_ino) else []
    except (OSError, IndexError):
        return []
    # Some file systems (overlay, btrfs) are listed under another device than the one that stat names.
    named = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    return [kind for device, kind in found if device == named] or [kind for _, kind in found]


class FileLock:
    """An advisory lock on a file (``flock``), which the kernel drops when its last holder ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with told_of_home(path.parent, path):
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def shared(self) -> None:
        """Take it with others; waits while somebody holds it exclusively."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def try_shared(self) -> bool:
        """Take it with others if nobody holds it exclusively now."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def exclusive(self) -> None:
        """Take it alone; waits while anybody else holds it."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def try_exclusive(self) -> bool:
        """Take it alone if nobody else holds it now. A shared hold of ours is given up in any case."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1
