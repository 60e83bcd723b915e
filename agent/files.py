"""Small files that survive a kill at any moment, and the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LOG_TAIL_BYTES = 8 * 1024

_USER_INFO = re.compile(r"(://)[^/?#\s'\"]+@")  # up to the last one: a password may hold another
_logging = threading.Lock()


def utc_now() -> str:
    """Return the time in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def log(text: str) -> None:
    """Write one line to standard error, which the backend keeps as the agent's log. Never raises: disks get full."""
    with _logging, contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{utc_now()} {without_credentials(text)}\n")
        sys.stderr.flush()


def without_credentials(text: str) -> str:
    """Return ``text`` without the user and password that a URL in it may carry."""
    return _USER_INFO.sub(r"\1***@", text)


def write_atomically(path: Path, data: bytes, *, durable: bool) -> None:
    """Replace the file ``path`` in one step, mode 0600: a reader sees the old content or the new, never a part.

    ``durable``: also survive a crash of the machine. Raises ``OSError``, and then the old content stands.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any], *, durable: bool) -> None:
    """Write a JSON object as :func:`write_atomically` does."""
    write_atomically(path, json.dumps(value, separators=(",", ":")).encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in ``path``; None where there is no such file or it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def tail(path: Path) -> str:
    """Return the last 8 KiB of a text file, cut at a character, without NULs and credentials; empty if unreadable."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            data = file.read(LOG_TAIL_BYTES)
    except OSError:
        return ""
    text = without_credentials(data.decode("utf-8", "replace")).replace("\0", "")
    return text.encode()[-LOG_TAIL_BYTES:].decode("utf-8", "ignore")
