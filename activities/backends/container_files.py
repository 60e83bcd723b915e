"""Files into a container and out of it, over the Docker API alone: the daemon may be on another machine.

What comes out was made by an agent and is not trusted: nothing is written outside the folder it is unpacked to, and
nothing that would make git on this host run a program, or read what is not in the checkout.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from typing_extensions import Buffer

MAX_CHECKOUT_BYTES = 8 * 1024**3
"""More than this is not fetched from a container: it would fill the worker's disk."""

_COPY_BYTES = 1 << 20


class Owner(NamedTuple):
    """Who the files of a workspace belong to inside it."""

    uid: int
    gid: int


class UnusableArchive(Exception):
    """What came out of the container cannot be unpacked; the text says why."""


def pack(folder: PurePosixPath, files: Mapping[str, bytes], checkout: Path | None, owner: Owner, to: IO[bytes]) -> None:
    """Write a tar of ``folder`` (mode 0700) to ``to``: ``files`` (mode 0600), an empty ``state``, and ``checkout``.

    All of it belongs to ``owner``.
    """
    with tarfile.open(fileobj=to, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in (str(folder), f"{folder}/state"):
            archive.addfile(_owned(_folder(name), owner))
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.mode, entry.size = 0o600, len(content)
            archive.addfile(_owned(entry, owner), io.BytesIO(content))
        if checkout:
            archive.add(checkout, f"{folder}/checkout", filter=lambda entry: _owned(entry, owner))


def user_ids(user: str, passwd: str, group: str) -> Owner:
    """Return the ids behind an image's ``USER``: ``name``, ``uid``, either with ``:group``; empty is root.

    ``passwd`` and ``group`` are the image's files. Raises ``LookupError`` for a name that is not in them.
    """
    name, _, group_name = user.partition(":")
    uid, gid = 0, 0
    if name:
        entry = _entry(passwd, name, 2)
        if entry is None and not name.isdecimal():
            raise LookupError(name)
        uid, gid = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    if group_name:
        entry = _entry(group, group_name, 2)
        if entry is None and not group_name.isdecimal():
            raise LookupError(group_name)
        gid = int(entry[2]) if entry else int(group_name)
    return Owner(uid, gid)


def read_member(chunks: Iterable[bytes], limit: int) -> bytes:
    """Return the content of the one file in a tar; empty where it holds none. At most ``limit`` bytes."""
    with tarfile.open(fileobj=_stream(chunks), mode="r|") as archive:
        for entry in archive:
            if entry.isreg() and (file := archive.extractfile(entry)):
                return file.read(limit)
    return b""


def unpack_tree(chunks: Iterable[bytes], target: Path) -> None:
    """Unpack a tar of one folder as ``target``. Raises :class:`UnusableArchive`.

    Left out: devices, pipes, sockets; of every ``.git`` its configuration, its hooks, and whatever leads out of it.
    """
    written = 0
    try:
        with tarfile.open(fileobj=_stream(chunks), mode="r|") as archive:
            for entry in archive:
                parts = PurePosixPath(entry.name).parts[1:]
                if ".." in parts or PurePosixPath(entry.name).is_absolute():
                    raise UnusableArchive(f"{entry.name!r} leads out of it")
                if not _is_harmless(parts, entry) or not (parts or entry.isdir()):
                    continue
                original = _original(entry, target) if entry.islnk() else None
                written += original.stat().st_size if original else entry.size
                if written > MAX_CHECKOUT_BYTES:
                    raise UnusableArchive(f"the checkout is larger than {MAX_CHECKOUT_BYTES // 1024**3} GiB")
                _unpack(archive, entry, target, parts, original)
    except tarfile.TarError as e:
        raise UnusableArchive(f"the archive is broken: {e}") from e


def _unpack(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, target: Path, parts: tuple[str, ...], original: Path | None
) -> None:
    path = target.joinpath(*parts)
    _check_parents(target, parts)
    if entry.isdir():
        path.mkdir(mode=0o700, exist_ok=True)
    elif entry.issym():
        path.symlink_to(entry.linkname)
    elif original:
        shutil.copyfile(original, path)
        path.chmod(original.stat().st_mode & 0o777)
    elif not entry.islnk() and (file := archive.extractfile(entry)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 | entry.mode & 0o111)
        with os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(file, copy, _COPY_BYTES)


def _original(entry: tarfile.TarInfo, target: Path) -> Path | None:
    """Return the file that came before and that ``entry`` is another name of; None where it was left out."""
    parts = PurePosixPath(entry.linkname).parts[1:]
    if ".." in parts:
        raise UnusableArchive(f"{entry.linkname!r} leads out of it")
    _check_parents(target, parts)
    original = target.joinpath(*parts)
    return original if not original.is_symlink() and original.is_file() else None


def _check_parents(target: Path, parts: tuple[str, ...]) -> None:
    """Make sure that everything above is a real folder: through a link, something else would be written or read."""
    current = target
    for part in parts[:-1]:
        current /= part
        if current.is_symlink() or not current.is_dir():
            raise UnusableArchive(f"{'/'.join(parts)!r} lies in what is no folder")


def _is_harmless(parts: tuple[str, ...], entry: tarfile.TarInfo) -> bool:
    if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        return False
    folded = [part.lower() for part in parts]
    if ".git" not in folded:
        return True
    inside = folded[folded.index(".git") + 1 :]
    if not inside:
        return entry.isdir()  # as a file or a link it names another repository
    if entry.issym() or entry.islnk():
        return False
    if "refs" in inside or "logs" in inside:
        return True
    leads_out = {"config", "config.worktree", "commondir", "gitdir", "alternates", "http-alternates"}
    return "hooks" not in inside and inside[-1] not in leads_out


def _folder(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o700
    return entry


def _owned(entry: tarfile.TarInfo, owner: Owner) -> tarfile.TarInfo:
    entry.uid, entry.gid, entry.uname, entry.gname = owner.uid, owner.gid, "", ""
    return entry


def _entry(table: str, wanted: str, id_field: int) -> list[str] | None:
    for line in table.splitlines():
        fields = line.split(":")
        if len(fields) > max(id_field + 1, 2) and wanted in {fields[0], fields[id_field]}:
            return fields
    return None


class _Chunks(io.RawIOBase):
    """A file over chunks of bytes, read once from the front."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._rest and (piece := next(self._chunks, b"")):
            self._rest = memoryview(piece)
        room = memoryview(buffer).cast("B")
        size = min(len(room), len(self._rest))
        room[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _stream(chunks: Iterable[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Chunks(chunks), _COPY_BYTES)
