"""Mirrors: one bare repository a host for each URL, fetched once for all tasks that need what is new.

``<home>/repositories/<hash of the URL>/`` holds ``mirror.git``, ``lock`` (held by whoever fetches, and inherited by the
git that does, so that what a killed worker leaves running is waited for, not met) and ``fetch.log``. In the mirror the
remote's branches are ``refs/remotes/origin/*``, where git prunes; ``refs/heads/*`` are our own.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio import activity

from activities import processes
from activities.errors import ActivityFailure, InvalidTask, ProvisionFailed, RepositoryUnreachable
from activities.files import exclusive, read_log_tail, remove_tree
from activities.git import Git, GitError
from activities.processes import ProcessId
from activities.remotes import Remote
from activities.threads import to_its_end, until_done
from messages.statuses import FailureSource

_log = logging.getLogger(__name__)

Tell = Callable[[str], Awaitable[None]]
"""Takes one sentence that says how far a long step is."""

BRANCHES = "refs/remotes/origin/"
_TRIES = 3
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_LEFT_BEHIND_SECONDS = 3600.0

_PHASE = re.compile(
    rb"(?:remote: )?((?:Enumerating|Counting|Compressing|Receiving|Unpacking|Indexing) objects|Resolving deltas"
    rb"|Checking connectivity): +(\d+%)?"
)
_LOCKED = re.compile(r"Unable to create '([^'\n]+\.lock)': File exists")
_NOT_GIVEN = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", re.IGNORECASE)
_ASTRAY = re.compile(
    r"(credential|http|https|url|include|includeif|protocol|remote|ssh|transfer|fetch|push|receive|uploadpack)\..*"
    r"|core\.(sshcommand|gitproxy|askpass|hookspath|fsmonitor|alternaterefscommand)",
    re.IGNORECASE,
)


class Mirror:
    """What this host has of one remote. ``local`` is git with an environment that holds no credentials."""

    def __init__(self, home: Path, remote: Remote, local: Git) -> None:
        self._remote = remote
        self._folder = home / "repositories" / hashlib.sha256(remote.url.encode()).hexdigest()[:16]
        self.path = self._folder / "mirror.git"
        self._log = self._folder / "fetch.log"
        self._git = local.at(self.path, GIT_DIR=self.path)

    async def has(self, commit: str) -> bool:
        """Tell whether the commit is there with everything that it needs."""
        if not self.path.is_dir():
            return False
        # A git that was killed while it unpacked leaves a commit without its files.
        looked = await self._git.finish("rev-list", "--quiet", "--objects", commit, "--not", "--all", "--")
        return looked.returncode == 0

    async def provide(self, commit: str, tell: Tell) -> None:
        """Have the commit in the mirror: fetched, unless it is there, by us or by whoever fetches right now.

        What was made stays for the next try, whatever happens. Raises :class:`InvalidTask`,
        :class:`RepositoryUnreachable`, or :class:`ProvisionFailed` where it is the mirror that cannot be used.
        """
        if await self.has(commit):
            return
        async with self._telling(tell), exclusive(self._folder / "lock", create=True) as lock:
            assert lock is not None
            try:
                await self._make()
                if await self.has(commit):
                    return
                await tell(f"fetching {self._remote.shown}")
                await self._fetch(lock, "--prune", "--tags", "--force", refspec=f"+refs/heads/*:{BRANCHES}*")
                await self._note_default_branch()
                if not await self.has(commit):
                    await self._fetch_commit(lock, commit)
            except GitError as e:
                text = f"the mirror {self.path} of {self._remote.shown} cannot be used: {e}; remove it if that persists"
                raise ProvisionFailed(text, source=FailureSource.PROVIDER) from e

    async def _fetch_commit(self, lock: int, commit: str) -> None:
        """Fetch a commit that no branch and no tag leads to."""
        try:
            await self._fetch(lock, "--no-tags", refspec=commit)
        except RepositoryUnreachable as e:
            if not _NOT_GIVEN.search(str(e)):
                raise
        except InvalidTask:
            pass
        if not await self.has(commit):
            raise InvalidTask(
                f"{self._remote.shown} has no commit {commit}, or no branch or tag leads to it; name one that does"
            )

    async def _make(self) -> None:
        """Have an empty mirror where there is none; one that git does not recognise is put aside."""
        if self.path.is_dir():
            if await self._git.ask("rev-parse", "--git-dir"):
                return
            aside = self._folder / f"broken-{time.time_ns()}"
            _log.warning("%s is no repository any more: made anew; what is left of it is %s", self.path, aside)
            self.path.rename(aside)
        half_made = self._folder / "mirror.git.new"
        await to_its_end(remove_tree, half_made)
        git = self._git.at(self._folder)
        await Git(self._folder, git.env).run("init", "--quiet", "--bare", "--initial-branch=main", str(half_made))
        made = self._git.at(half_made, GIT_DIR=half_made)
        await self._configure(made)
        half_made.rename(self.path)

    async def _configure(self, git: Git) -> None:
        await git.run("config", "remote.origin.url", self._remote.url)
        await git.run("config", "remote.origin.fetch", f"+refs/heads/*:{BRANCHES}*")

    async def _drop_astray(self) -> None:
        """Take out of the mirror's configuration, which agents in worktrees can write, what leads our git elsewhere."""
        for file in (self.path / "config", self.path / "config.worktree"):
            listed = await self._git.ask(
                "config", "--file", str(file), "--no-includes", "--null", "--name-only", "--list"
            )
            for key in dict.fromkeys((listed or "").split("\0")):
                if _ASTRAY.fullmatch(key):
                    await self._git.run("config", "--file", str(file), "--unset-all", key)
        await self._configure(self._git)

    async def _fetch(self, lock: int, *options: str, refspec: str) -> None:
        await self._drop_astray()
        await to_its_end(_remove_left_behind, self.path)
        git = (await self._remote.git(self._folder, lock)).at(GIT_DIR=self.path)
        command = ("fetch", "--progress", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules")
        argv, env = git.program(*command, *options, "--", self._remote.url, refspec)
        for tries_left in reversed(range(_TRIES)):
            self._log.unlink(missing_ok=True)
            # It outlives us: what a worker's end, or a try's time limit, finds half fetched goes on, and the next try
            # waits for it. So its output goes to a file, because a pipe would end with us, and it with the pipe.
            process = processes.start(argv, cwd=self._folder, env=env, log=self._log, pass_fds=[lock])
            try:
                await processes.wait_for_exit(process, None)
            except asyncio.CancelledError:
                if _is_unwanted():
                    await until_done(asyncio.ensure_future(_end(process)))
                raise
            said = read_log_tail(self._log)
            if processes.exit_code(process) == 0:
                self._log.unlink(missing_ok=True)
                return
            # Git itself waits for a lock that is in use; this one was left by a git that was killed.
            if not tries_left or not _remove_stale_lock(self.path, said):
                raise await self._remote.failure(said)

    async def _note_default_branch(self) -> None:
        """Let ``origin/HEAD`` name the remote's default branch, as in a clone."""
        if await self._git.ask("rev-parse", "--verify", "--quiet", f"{BRANCHES}HEAD"):
            return
        with contextlib.suppress(ActivityFailure):  # a comfort
            branch = await self._remote.default_branch()
            if branch and await self._git.commit_of(f"{BRANCHES}{branch}"):
                await self._git.ask("symbolic-ref", f"{BRANCHES}HEAD", f"{BRANCHES}{branch}")

    @asynccontextmanager
    async def _telling(self, tell: Tell) -> AsyncGenerator[None]:
        """Tell how far the fetch is, ours or the one that we wait for, for as long as the context lasts."""

        async def follow() -> None:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)  # git says how far it is about as often
                if phase := _phase(self._log):
                    await tell(f"fetching {self._remote.shown}: {phase}")

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _phase(log: Path) -> str | None:
    """Return what git does and how far it is with that: ``receiving objects 45 %``."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            found = _PHASE.findall(file.read())
    except OSError:
        return None
    if not found:
        return None
    name, share = found[-1]
    return f"{name.decode().lower()} {share.decode().replace('%', ' %')}".strip()


def _remove_stale_lock(mirror: Path, said: str) -> bool:
    """Remove the lock that git stumbled over; False where it was something else."""
    found = _LOCKED.search(said)
    if found is None or not Path(found[1]).resolve().is_relative_to(mirror.resolve()):
        return False
    Path(found[1]).unlink(missing_ok=True)
    return True


def _remove_left_behind(mirror: Path) -> None:
    """Remove packs that a killed git left half written."""
    oldest = time.time() - _LEFT_BEHIND_SECONDS
    for path in (mirror / "objects" / "pack").glob("tmp_*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _is_unwanted() -> bool:
    """Tell whether we are cancelled because nobody wants the task any more, not because this try has to end."""
    details = activity.cancellation_details() if activity.in_activity() else None
    return details is None or details.cancel_requested


async def _end(process: ProcessId) -> None:
    """End a fetch and the programs that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await processes.wait_for_exit(process, _STOP_SECONDS)
