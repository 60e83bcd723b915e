"""URLs of git repositories: which there may be, and how they are shown."""

import re
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints

from messages.urls import is_loopback_host

_FORMS = "give https://host/path, ssh://user@host/path, user@host:path or file:///path"
_SCP = re.compile(r"(?:(?P<user>[^@:/]*)@)?(?P<host>[^@:/]+):(?P<path>[^:].*)")
"""``user@host:path`` as git reads it; ``helper::address``, which starts a program, is none."""
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.~+-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_CLEAN = re.compile(r"[!\"$-<=>@-\[\]-~]*")
_CONTROL = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")


class RepositoryUrl(NamedTuple):
    """The parts of a repository's URL. ``scheme`` is https, http, ssh or file; ``host`` holds the port too."""

    scheme: str
    host: str
    path: str
    is_scp: bool = False

    @property
    def shown(self) -> str:
        """Host and path, for texts: ``git.example.org/app.git``."""
        return f"{self.host}/{self.path.lstrip('/')}" if self.host else self.path

    @property
    def public(self) -> str:
        """The URL without a user."""
        return f"{self.host}:{self.path}" if self.is_scp else f"{self.scheme}://{self.host}{self.path}"


def parse_repository_url(text: str) -> RepositoryUrl:
    """Take a repository's URL apart.

    Raises ``ValueError`` for what git must not be given: transports that start programs, what could be read as an
    option, credentials. Its text quotes nothing, because a secret may be in it.
    """
    if not _CLEAN.fullmatch(text) or _CONTROL.search(text):
        raise ValueError(
            "holds a character that has no place in it (a space, a control character, a backslash, ? or #); "
            "write those that belong there as %20 and so on"
        )
    scheme, separator, _ = text.partition("://")
    if not separator:
        return _scp_like(text)
    if scheme not in {"https", "http", "ssh", "file"}:
        raise ValueError(f"is not of a kind that is fetched here; {_FORMS}")
    try:
        parts = urlsplit(text)
        port, user, password = parts.port, parts.username, parts.password
    except ValueError:
        raise ValueError(f"is not a URL; {_FORMS}") from None
    name = parts.netloc.rpartition("@")[2]
    host = name if port is None else name.rpartition(":")[0]
    if password is not None or (user is not None and scheme != "ssh"):
        raise ValueError(
            "carries a user or a password, which everybody who sees the task would read; leave it out and let git's "
            "credential helper know it where the worker runs"
        )
    if user is not None and not _USER.fullmatch(user):
        raise ValueError(f"has a user that no host can have; {_FORMS}")
    if scheme == "file":
        if name:
            raise ValueError("names a host, which file:// cannot reach; write file:///path, or use ssh://")
    elif not _HOST.fullmatch(host) or port == 0:
        raise ValueError(f"names no host; {_FORMS}")
    if scheme == "http" and not is_loopback_host(parts.hostname or ""):
        raise ValueError("is plain http, which anybody on the way can read and change; use https:// or ssh://")
    _check_path(parts.path)
    return RepositoryUrl(scheme, name, parts.path)


def _scp_like(text: str) -> RepositoryUrl:
    found = _SCP.fullmatch(text)
    if found is None:
        raise ValueError(f"is not a URL of a repository; {_FORMS}")
    user, host, path = found["user"], found["host"], found["path"]
    if (user is not None and not _USER.fullmatch(user)) or not _HOST.fullmatch(host):
        raise ValueError(f"names no host; {_FORMS}")
    if path.startswith("-"):
        raise ValueError(f"has a path that begins with a hyphen; {_FORMS}")
    _check_path(path)
    return RepositoryUrl("ssh", host, path, is_scp=True)


def _check_path(path: str) -> None:
    if not path.strip("/"):
        raise ValueError(f"names no repository on its host; {_FORMS}")


def _checked(text: str) -> str:
    parse_repository_url(text)
    return text


RepositoryAddress = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_checked)]
"""A repository's URL as git takes it, checked by :func:`parse_repository_url`."""
