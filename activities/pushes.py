"""Pushing a result to the repository that its task was given by URL."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from activities.errors import RepositoryUnreachable, ResultNotSaved
from activities.files import remove_tree
from activities.git import Git
from activities.remotes import Remote
from activities.threads import to_its_end

PUSH_SECONDS = 180.0
"""How long one try may take; all tries, and the bundle in place of them, have to fit into a release."""
PAUSES = (2.0, 10.0)
"""Seconds before each further try, where the remote is away."""

_REFUSED = re.compile(r"^!\t[^\t]*\t\[(?:remote )?rejected\] \((.*)\)$", re.MULTILINE)
_REMOTE_SAID = re.compile(r"^remote: *(\S.*?)\s*$", re.MULTILINE)
_RACED = re.compile(r"fetch first|non-fast-forward|already exists|stale info|cannot lock ref")
_SAID_CHARS = 300


async def push(remote: Remote, commit: str, branch: str, *, objects: Sequence[Path], scratch: Path) -> str:
    """Push ``commit`` as ``branch``, never by force, and return the branch's name there.

    The name gets a number where the remote has something else under it. ``objects`` are the object folders that hold
    the commit. Git runs in an empty repository of its own (in ``scratch``), so that no configuration of an agent's says
    where the worker's credentials go. Raises :class:`RepositoryUnreachable` after the last of several tries, and at
    once :class:`ResultNotSaved` where the remote refuses, :class:`InvalidTask` where it does not let us in.
    """
    place = scratch / "push.git"
    await to_its_end(remove_tree, place)
    git = await remote.git(scratch)
    await Git(scratch, git.env).run("init", "--quiet", "--bare", str(place))
    alternates = "".join(f"{folder}\n" for folder in objects)
    await asyncio.to_thread((place / "objects/info/alternates").write_text, alternates)
    for pause in (*PAUSES, None):
        try:
            async with asyncio.timeout(PUSH_SECONDS):
                return await _push(git.at(place, GIT_DIR=place), remote, commit, branch)
        except TimeoutError:
            failure = RepositoryUnreachable(f"{remote.shown} did not take the branch within {PUSH_SECONDS:g} s")
        except RepositoryUnreachable as e:
            failure = e
        if pause is None:
            raise failure
        await asyncio.sleep(pause)
    raise AssertionError  # the last pause is None


async def _push(git: Git, remote: Remote, commit: str, branch: str) -> str:
    # Where an earlier try's answer was lost, its commit is there under the name, and pushing it again changes nothing.
    there = await remote.list(f"refs/heads/{branch}*", options=("--heads",))
    name, number = branch, 1
    while there.get(f"refs/heads/{name}", commit) != commit:
        number += 1
        name = f"{branch}-{number}"
    arguments = ("--porcelain", "--no-verify", "--no-follow-tags", "--no-recurse-submodules")
    finished = await git.finish("push", *arguments, "--", remote.url, f"{commit}:refs/heads/{name}")
    if finished.returncode == 0:
        return name
    said = finished.stderr.decode("utf-8", "replace")
    refused = _REFUSED.search(finished.stdout.decode("utf-8", "replace"))
    if refused is None:
        raise await remote.failure(said)
    if _RACED.search(refused[1]):
        raise RepositoryUnreachable(f"{remote.shown} did not take branch {name}: {refused[1]}")
    hints = "; ".join(_REMOTE_SAID.findall(said))
    reason = f"{refused[1]}: {hints}" if hints else refused[1]
    printable = "".join(c if c.isprintable() else " " for c in reason)[:_SAID_CHARS]
    raise ResultNotSaved(f"{remote.shown} refused branch {name}: {printable}")
