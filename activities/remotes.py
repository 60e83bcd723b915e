"""A repository elsewhere: reached with the worker's own credentials, never waiting for a person.

What git says when that fails is turned into one of ``activities.errors`` here and nowhere else; those say what is
tried again.
"""

import asyncio
import difflib
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from activities.errors import ActivityFailure, InvalidTask, RepositoryUnreachable, UnknownHost
from activities.git import Git, lines_of
from activities.threads import in_daemon_thread
from messages.repositories import parse_repository_url
from messages.urls import without_user_info

LIST_SECONDS = 20.0
"""How long a remote may take to say what it has; preflight has 30 s for all that it does."""
_RESOLVE_SECONDS = 5.0
_STALL_SECONDS = 60
"""How long a transfer by HTTP may stand still."""
_LIST_BYTES = 64 * 1024 * 1024
_SAID_CHARS = 300

_FULL_SHA = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_KEPT = re.compile(
    r"GIT_(ASKPASS|SSH|SSH_COMMAND|SSH_VARIANT|SSL_\w+|PROXY_SSL_\w+|HTTP_PROXY_AUTHMETHOD"
    r"|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|VALUE_\d+))"
)
_LEFT_OUT = re.compile(r"GIT_.*|TASKRUNNER_.*|TEMPORAL_.*|SSH_ASKPASS.*|DISPLAY|WAYLAND_DISPLAY")
_SSH_OPTIONS = "-oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15 -oServerAliveCountMax=3"

_NOT_LET_IN = re.compile(
    r"Authentication failed|could not read (Username|Password)|returned error: (401|403|407)|Permission denied",
)
_NOT_THERE = re.compile(
    r"repository '.*' not found|Repository not found|returned error: 404|does not appear to be a git repository"
    r"|is this a git repository\?|did you run git update-server-info|project you were looking for could not be found",
    re.IGNORECASE,
)
_UNRESOLVED = re.compile(r"Could not resolve (?:host|hostname|proxy):? ([^\s:]+)", re.IGNORECASE)
_UNKNOWN_HOST = re.compile(r"Could not resolve (host|proxy)|Name or service not known|name resolution", re.IGNORECASE)
_REFUSED = re.compile(r"Connection refused|Couldn't connect|Failed to connect|No route to host|unreachable")
_SLOW = re.compile(r"timed out|Operation too slow|Timeout, server", re.IGNORECASE)
_UNTRUSTED = re.compile(r"certificate|SSL peer", re.IGNORECASE)
_FOR_GOOD = re.compile(r"dubious ownership|transport '.*' not allowed|cannot run|unknown option|not our ref")


def remote_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a worker's environment that git is given to reach another host.

    A credential helper may need any variable, so all stay but what leads git astray, and what opens a window.
    """
    return {name: value for name, value in environ.items() if _KEPT.fullmatch(name) or not _LEFT_OUT.fullmatch(name)}


class Remote:
    """The repository at ``url``, with the credentials that ``environ``, the worker's environment, leads to."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        parts = parse_repository_url(url)
        self.url = url
        self.shown = parts.shown
        self.public = parts.public
        self._env = remote_environment(environ)

    async def git(self, cwd: Path, *keep_open: int) -> Git:
        """Return git in ``cwd``, set up to reach the remote."""
        git = Git(cwd=cwd, env=self._env, keep_open=keep_open)
        git = git.at(
            GIT_ALLOW_PROTOCOL="file:http:https:ssh",
            GIT_HTTP_LOW_SPEED_LIMIT="1",
            GIT_HTTP_LOW_SPEED_TIME=str(_STALL_SECONDS),
            SSH_ASKPASS_REQUIRE="never",
            GCM_INTERACTIVE="never",
        )
        command = self._env.get("GIT_SSH_COMMAND") or await git.ask("config", "--get", "core.sshCommand")
        if not command and "GIT_SSH" in self._env:
            return git
        if not command or Path(_first_word(command)).name == "ssh":
            git = git.at(GIT_SSH_COMMAND=f"{command or 'ssh'} {_SSH_OPTIONS}")
        return git

    async def resolve(self, ref: str | None) -> str:
        """Return the commit that ``ref`` (a branch, a tag, a full commit, by default HEAD) names there.

        A full commit is believed. Raises :class:`InvalidTask` or :class:`RepositoryUnreachable`.
        """
        if ref and _FULL_SHA.fullmatch(ref):
            return ref.lower()
        if ref is None:
            refs = await self.list("HEAD", "refs/heads/*")
            if "HEAD" in refs:
                return refs["HEAD"]
            names = _names(refs)
            if not names:
                raise InvalidTask(f"{self.shown} has no commit yet; push one, then submit the task again")
            raise InvalidTask(f"the HEAD of {self.shown} names no branch that it has; name a ref ({_some(names)})")
        # Of branches and tags alone the server need not send what large hosts keep besides, as of pull requests.
        refs = await self.list(options=() if ref.startswith("refs/") else ("--heads", "--tags"))
        for pattern in ("{}", "refs/{}", "refs/heads/{}", "refs/tags/{}"):
            name = pattern.format(ref)
            if name in refs:
                return refs.get(f"{name}^{{}}", refs[name])
        names = _names(refs)
        if not names:
            raise InvalidTask(f"{self.shown} has no branch {ref!r}: it has no commit yet; push one")
        near = difflib.get_close_matches(ref, names, n=3) or names
        raise InvalidTask(
            f"{self.shown} has no branch or tag {ref!r}; it has {_some(near)} (a commit has to be given in full)"
        )

    async def default_branch(self) -> str | None:
        """Return the branch that the remote's HEAD is on; None where it does not say."""
        said = await self._list("HEAD", options=("--symref",))
        found = re.search(r"^ref: refs/heads/(\S+)\tHEAD$", said, re.MULTILINE)
        return found[1] if found else None

    async def list(self, *patterns: str, options: Sequence[str] = ()) -> dict[str, str]:
        """Return the remote's refs (``refs/tags/x^{}`` is what a tag points to) with their objects."""
        lines = (line.partition("\t") for line in lines_of(await self._list(*patterns, options=options)))
        return {name: commit for commit, _, name in lines}

    async def _list(self, *patterns: str, options: Sequence[str]) -> str:
        git = await self.git(Path("/"))
        try:
            async with asyncio.timeout(LIST_SECONDS):
                finished = await git.finish(
                    "ls-remote", "--quiet", *options, "--", self.url, *patterns, limit=_LIST_BYTES
                )
        except TimeoutError:
            raise RepositoryUnreachable(
                f"{self.shown} did not answer within {LIST_SECONDS:g} s; see whether git ls-remote does, there where "
                "the worker runs"
            ) from None
        if finished.cut:
            raise InvalidTask(f"{self.shown} has too many refs to look through; name a full commit")
        if finished.returncode != 0:
            raise await self.failure(finished.stderr.decode("utf-8", "replace"))
        return finished.stdout.decode("utf-8", "replace")

    async def failure(self, said: str) -> ActivityFailure:
        """Return what git's error output means; the resolver is asked about a host that git cannot resolve."""
        failure = self._meaning(said)
        if isinstance(failure, RepositoryUnreachable) and await _names_no_host(said):
            return UnknownHost(str(failure))
        return failure

    def _meaning(self, said: str) -> ActivityFailure:
        line = _telling_line(said)
        if "Host key verification failed" in said:
            return InvalidTask(
                f"the ssh host key of {self.shown} is not known where the worker runs; connect to the host once there, "
                "as the worker's user, and accept its key"
            )
        if _NOT_LET_IN.search(said):
            return InvalidTask(
                f"{self.shown} does not let us in ({line}); give git a credential for it where the worker runs: a "
                "credential helper, or an ssh key"
            )
        if _NOT_THERE.search(said):
            return InvalidTask(
                f"there is no git repository at {self.shown} ({line}); check the URL (some hosts say so "
                "where access is missing, too)"
            )
        if _UNTRUSTED.search(said):
            return InvalidTask(f"the certificate of {self.shown} is not accepted ({line}); see git's http.sslCAInfo")
        if _FOR_GOOD.search(said):
            return InvalidTask(f"{self.shown} cannot be used: {line}")
        if _UNKNOWN_HOST.search(said):
            return RepositoryUnreachable(
                f"the host of {self.shown} is not known where the worker runs ({line}); check the URL and the network"
            )
        if _REFUSED.search(said):
            return RepositoryUnreachable(f"{self.shown} cannot be reached ({line}); check the URL and the network")
        if _SLOW.search(said):
            return RepositoryUnreachable(f"{self.shown} stopped answering ({line}); try again later")
        return RepositoryUnreachable(f"{self.shown} cannot be read: {line}")


async def _names_no_host(said: str) -> bool:
    """Tell whether the resolver answers that the host that git could not resolve does not exist.

    Git says the same where the resolver itself is away, as on a network that comes back in a moment.
    """
    found = _UNRESOLVED.search(said)
    if found is None:
        return False
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            await in_daemon_thread(lambda: socket.getaddrinfo(found[1], None))
    except socket.gaierror as e:
        return e.errno in {socket.EAI_NONAME, socket.EAI_NODATA}
    except (TimeoutError, OSError, UnicodeError):
        return False
    return False


def _first_word(command: str) -> str:
    try:
        return next(iter(shlex.split(command)), "")
    except ValueError:
        return ""


def _names(refs: Mapping[str, str]) -> list[str]:
    short = (re.sub(r"^refs/(heads|tags)/|\^\{\}$", "", name) for name in refs if name != "HEAD")
    return list(dict.fromkeys(short))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _telling_line(said: str) -> str:
    """Return the line of git's error output that says most: the first that is an error, without credentials."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    telling = [line for line in lines if re.match(r"(fatal|error|ssh|ERROR|remote: (fatal|error|ERROR))\b", line)]
    line = (telling or lines or ["git said nothing"])[0]
    line = re.sub(r"^(fatal|error|remote): ", "", without_user_info(line))
    line = re.sub(r" after \d+ ms\b", "", line)  # of a connection that was refused: every try would read otherwise
    return "".join(c if c.isprintable() else " " for c in line)[:_SAID_CHARS]
