"""Git, run so that nothing of the user's is touched by accident: no hooks, no signing, no prompts, no stray GIT_*."""

import asyncio
import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from activities.errors import BackendUnusable, InvalidTask
from activities.subprocesses import Finished, run_program
from messages.names import result_branch
from messages.urls import without_user_info

OLDEST_GIT = (2, 34)
"""The oldest release that has all we use: the newest of it is ``git add --sparse``."""

_SAFE_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "core.safecrlf=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgSign=false",
    "advice.detachedHead=false",
)
_IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "taskrunner"), ("EMAIL", "taskrunner@localhost"))
}
_ERROR_CHARS = 1000


def lines_of(output: str) -> list[str]:
    """Return what git put on lines of their own.

    Names of files and branches may hold what Python takes for the end of a line or a word too, as U+2028 or U+3000.
    """
    return [line for line in output.split("\n") if line]


class GitError(Exception):
    """A git command failed; the text is the command's name and what git said."""


@dataclass(frozen=True)
class Git:
    """Git in one folder. ``env`` is a cleaned environment; ``keep_open`` are descriptors that each command inherits."""

    cwd: Path
    env: Mapping[str, str]
    keep_open: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    def at(self, cwd: Path | None = None, **variables: str | Path) -> "Git":
        """Return the same git in another folder, with further ``GIT_*`` variables set."""
        added = {name: str(value) for name, value in variables.items()}
        return replace(self, cwd=cwd or self.cwd, variables={**self.variables, **added})

    def program(self, *args: str) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment of one command, for those who start it themselves."""
        config = [part for setting in _SAFE_CONFIG for part in ("-c", setting)]
        env = {
            **self.env,
            **_IDENTITY,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C",
            **self.variables,
        }
        return ["git", *config, *args], env

    async def finish(self, *args: str, stdin: bytes = b"", limit: int | None = None) -> Finished:
        """Run one command and return how it ended, success or not."""
        argv, env = self.program(*args)
        try:
            return await run_program(argv, cwd=self.cwd, env=env, stdin=stdin, keep_open=self.keep_open, limit=limit)
        except FileNotFoundError as e:
            if self.cwd.is_dir():
                raise BackendUnusable(
                    f"git is not installed on this host; install git {OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer"
                ) from e
            raise GitError(f"git {args[0]}: the folder {self.cwd} is not there") from e
        except (NotADirectoryError, PermissionError) as e:
            raise GitError(f"git {args[0]}: cannot use the folder {self.cwd}: {e.strerror}") from e

    async def run(self, *args: str, stdin: bytes = b"") -> str:
        """Run one command and return its output without the last newline; raise :class:`GitError` if it fails."""
        finished = await self.finish(*args, stdin=stdin)
        if finished.returncode != 0:
            said = finished.stderr.decode("utf-8", "replace").strip() or f"exit code {finished.returncode}"
            raise GitError(f"git {args[0]}: {without_user_info(said)[-_ERROR_CHARS:]}")
        return finished.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")

    async def ask(self, *args: str) -> str | None:
        """Run one command and return its output; None where it fails."""
        try:
            return await self.run(*args)
        except GitError:
            return None

    async def commit_of(self, revision: str) -> str | None:
        """Return the commit that ``revision`` names; None for nothing, or for something else."""
        return await self.ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") or None

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Tell whether ``older`` is ``newer`` or one of its ancestors."""
        return (await self.finish("merge-base", "--is-ancestor", older, newer)).returncode == 0

    async def common_dir(self) -> Path:
        """Return the folder that all worktrees of the repository share (``.git`` in the plain case)."""
        found = await self.run("rev-parse", "--git-common-dir")
        return await asyncio.to_thread((self.cwd / found).resolve)


def _user() -> str:
    """Return who we are, for texts that say whom to let in."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _check_folder(path: Path) -> None:
    """Raise :class:`InvalidTask` unless ``path`` is a folder that we may enter."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        may_enter = os.access(path, os.R_OK | os.X_OK, effective_ids=True)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = may_enter = False
    except PermissionError:
        is_folder, may_enter = True, False
    except OSError as e:  # a name that is too long, links in a circle, a server that is away
        raise InvalidTask(
            f"{path} cannot be looked at: {e.strerror}; give the path of a git repository on this host"
        ) from e
    if not is_folder:
        raise InvalidTask(f"{path} is not a folder on this host; give the path of a git repository")
    if not may_enter:
        raise InvalidTask(
            f"the worker may not enter {path}: it runs as user {_user()}; "
            "give that user access to the folder and those above it, or start the worker as the folder's owner"
        )


def _why_no_repository(path: Path) -> str:
    if os.path.lexists(path / ".git"):
        return (
            f"{path}/.git is broken, or the worker cannot read it: it runs as user {_user()}; see: git -C {path} status"
        )
    return f"{path} is not a git repository; run: git init {path}"


async def check_repository(git: Git, ref: str | None) -> str:
    """Return the commit that a task starts from; raise :class:`InvalidTask` saying what to do about ``git.cwd``."""
    path = git.cwd
    await asyncio.to_thread(_check_folder, path)
    if commit := await git.commit_of(ref or "HEAD"):
        return commit
    try:
        await git.run("rev-parse", "--git-dir")
    except GitError as e:
        text = str(e)
        if "not a git repository" in text:
            raise InvalidTask(await asyncio.to_thread(_why_no_repository, path)) from e
        raise InvalidTask(f"{path} cannot be used: {text}") from e
    if ref and await git.commit_of("HEAD"):
        raise InvalidTask(f"{ref!r} names no commit in {path}; see: git -C {path} branch --all")
    if ref:
        raise InvalidTask(f"{ref!r} names no commit in {path}")
    raise InvalidTask(f"{path} has no commit to start from; make one: git -C {path} commit --allow-empty -m start")


async def check_result_branch(git: Git, task_id: str) -> None:
    """Raise :class:`InvalidTask` where a branch of the user's makes the result's branch impossible."""
    parent = result_branch(task_id).partition("/")[0]
    if await git.commit_of(f"refs/heads/{parent}"):
        raise InvalidTask(
            f"{git.cwd} has a branch called {parent!r}, so {result_branch(task_id)!r} cannot be made beside it; "
            f"rename it: git -C {git.cwd} branch -m {parent} {parent}-old"
        )
