"""Keeping what an agent changed, by plumbing alone.

The agent may have committed, switched branches, detached HEAD, stopped in the middle of a merge, left ``index.lock``
behind or deleted its own checkout. So nothing here uses its index (a copy at most), its HEAD (only as a commit to keep)
or a porcelain command that would refuse: files are added to an index of our own, written as a tree, committed on top of
every commit the agent left, and a branch is pointed at that.
"""

import asyncio
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from activities.errors import ResultNotSaved
from activities.files import is_real_folder, open_up
from activities.git import Git, GitError, lines_of
from activities.threads import to_its_end

MAX_PATCH_BYTES = 4 * 1024 * 1024
MAX_BUNDLE_BYTES = 50 * 1000 * 1000

GITLINK = "160000"
"""The mode of a submodule, as git lists it."""


@dataclass(frozen=True)
class Change:
    """What changed: the commit that holds it, and its size against the base."""

    commit: str
    base: str
    files_changed: int
    insertions: int
    deletions: int
    patch: bytes | None
    """``git diff --binary`` from base to commit; None above 4 MiB."""


@dataclass(frozen=True)
class Place:
    """Where the agent worked. ``git_dir`` holds its HEAD and index; ``scratch`` is a folder for our own files.

    ``git`` runs in ``git_dir`` and knows nothing of the checkout.
    """

    git: Git
    git_dir: Path
    checkout: Path
    scratch: Path


async def save_change(place: Place, *, branch: str, base: str, message: str) -> Change | None:
    """Commit everything in the checkout but ignored files and point ``branch`` at it; None where nothing changed.

    All commits that the agent left on ``branch`` and under HEAD are kept as ancestors. Running again gives the same
    commit. Raises :class:`ResultNotSaved`, and then has changed no branch.
    """
    ref = f"refs/heads/{branch}"
    try:
        tips = await _tips(place, ref)
        old = await place.git.commit_of(ref)
        base_tree = await place.git.run("rev-parse", "--verify", f"{base}^{{tree}}")
        tree = await _tree(place, base, (*tips, base)[0])
        if tree == base_tree and all([await place.git.is_ancestor(tip, base) for tip in tips]):
            return None
        commit = await _commit(place.git, tree, tips or [base], message)
        if commit != old:
            await _drop_stale_locks(place, ref)
            await place.git.run("update-ref", "-m", message, ref, commit, old or "0" * len(commit))
        return await _measure(place.git, base, commit)
    except (GitError, OSError) as e:
        raise ResultNotSaved(f"what the agent changed could not be saved: {e}; it is still in {place.checkout}") from e


async def make_bundle(git: Git, *, branch: str, base: str | None, alone: bool = False) -> bytes:
    """Return a bundle of ``branch``, and, unless ``alone``, of what the repository's other branches and stash hold.

    Commits that ``base`` has are left out, which needs them to be there when the bundle is read; None bundles all.
    Raises :class:`ResultNotSaved` above 50 MB.
    """
    refs = [f"refs/heads/{branch}"]
    try:
        listed = ("for-each-ref", "--format=%(refname)", "refs/heads", "refs/stash")
        others = "" if alone else await git.run(*listed)
        for ref in lines_of(others):
            known = (base and await git.is_ancestor(ref, base)) or await _is_upstream(git, ref)
            if ref not in refs and not known:
                refs.append(ref)
        exclude = [f"^{base}"] if base else []
        finished = await git.finish("bundle", "create", "--quiet", "-", *refs, *exclude, limit=MAX_BUNDLE_BYTES)
    except (GitError, OSError) as e:
        raise ResultNotSaved(f"the bundle of the result could not be made: {e}; it is still in {git.cwd}") from e
    if finished.cut:
        raise ResultNotSaved(
            f"what the agent changed is larger than {MAX_BUNDLE_BYTES // 1_000_000} MB as a git bundle, so the "
            f"workspace is kept; fetch branch {branch!r} from {git.cwd}, then delete the workspace"
        )
    if finished.returncode != 0:
        said = finished.stderr.decode("utf-8", "replace").strip()
        raise ResultNotSaved(f"the bundle of the result could not be made: {said}; it is still in {git.cwd}")
    return finished.stdout


async def _is_upstream(git: Git, ref: str) -> bool:
    """Tell whether the repository that this one was cloned from has all that ``ref`` holds."""
    return bool(await git.ask("for-each-ref", "--count=1", "--contains", ref, "refs/remotes/origin"))


async def _tips(place: Place, ref: str) -> list[str]:
    """Return the commits that the agent left, without those that are ancestors of others; HEAD's comes first."""
    found: list[str] = []
    for revision in ("HEAD", ref):
        commit = await place.git.commit_of(revision)
        if commit and commit not in found:
            found.append(commit)
    return [
        tip for tip in found if not any([await place.git.is_ancestor(tip, other) for other in found if other != tip])
    ]


async def _commit(git: Git, tree: str, parents: list[str], message: str) -> str:
    if len(parents) == 1 and await git.run("rev-parse", "--verify", f"{parents[0]}^{{tree}}") == tree:
        return parents[0]
    return await git.run("commit-tree", tree, *[part for parent in parents for part in ("-p", parent)], "-m", message)


async def _drop_stale_locks(place: Place, ref: str) -> None:
    """Remove the locks that a killed git left on what only this workspace writes: its HEAD and its branch."""
    branch = place.git.cwd / await place.git.run("rev-parse", "--git-path", ref)
    for path in (place.git_dir / "HEAD", branch):
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


async def _tree(place: Place, base: str, start: str) -> str:
    if not is_real_folder(place.checkout):  # gone, or a link to somewhere else: what was committed is all there is
        return await place.git.run("rev-parse", "--verify", f"{start}^{{tree}}")
    index = place.scratch / "result-index"
    git = place.git.at(place.checkout, GIT_DIR=place.git_dir, GIT_WORK_TREE=place.checkout, GIT_INDEX_FILE=index)
    try:
        try:
            await to_its_end(_copy_index, place.git_dir / "index", index)
            await _add_everything(git, base)
        except (GitError, OSError):  # its index is missing or broken, or folders cannot be read
            await to_its_end(_drop_index, index)
            await to_its_end(open_up, place.checkout)
            await git.run("read-tree", start)
            await _add_everything(git, base)
        return await git.run("write-tree")
    finally:
        _drop_index(index)


def _copy_index(source: Path, target: Path) -> None:
    _drop_index(target)
    if not stat.S_ISREG(source.stat(follow_symlinks=False).st_mode):
        raise FileNotFoundError(source)
    shutil.copyfile(source, target)


def _drop_index(index: Path) -> None:
    index.unlink(missing_ok=True)
    index.with_name(f"{index.name}.lock").unlink(missing_ok=True)


async def _add_everything(git: Git, base: str) -> None:
    nested = await _nested_repositories(git, base)
    excluded = [f":(exclude,literal,top){path}" for path in nested]
    await git.run("add", "--all", "--sparse", "--", ":/", *excluded)
    for path in nested:
        # Git would record a nested repository as a bare commit id and lose its files with the workspace.
        await git.run("update-index", "--force-remove", "-z", "--stdin", stdin=os.fsencode(path) + b"\0")
        files = await _files_of(git, path)
        await git.run("update-index", "--add", "--remove", "-z", "--stdin", stdin=b"".join(f + b"\0" for f in files))


async def _nested_repositories(git: Git, base: str) -> list[str]:
    """Return the folders that are repositories of their own, submodules of the base left out."""
    others = (await git.run("ls-files", "--others", "--exclude-standard", "-z")).split("\0")
    nested = {path.rstrip("/") for path in others if path.endswith("/")}
    staged = [line for line in (await git.run("ls-files", "--stage", "-z")).split("\0") if line.startswith(GITLINK)]
    if staged:
        before = (await git.run("ls-tree", "-r", "-z", "--full-tree", base)).split("\0")
        submodules = {line.partition("\t")[2] for line in before if line.startswith(GITLINK)}
        nested |= {path for line in staged if (path := line.partition("\t")[2]) not in submodules}
    return sorted(path for path in nested if is_real_folder(git.cwd / path))


async def _files_of(git: Git, nested: str) -> list[bytes]:
    folder = git.cwd / nested
    inner = Git(cwd=folder, env=git.env, keep_open=git.keep_open)
    listed = await inner.finish("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    # Where its ``.git`` is broken, git finds the repository around it, and its files are just files.
    if listed.returncode != 0 or await inner.ask("rev-parse", "--show-prefix") != "":
        return await asyncio.to_thread(_walk, folder, git.cwd)
    found: list[bytes] = []
    for name in listed.stdout.split(b"\0"):
        path = os.fsencode(nested) + b"/" + name
        if name.endswith(b"/") or (name and is_real_folder(git.cwd / os.fsdecode(path))):
            found += await _files_of(git, os.fsdecode(path.rstrip(b"/")))
        elif name:
            found.append(path)
    return list(dict.fromkeys(found))


def _walk(folder: Path, root: Path) -> list[bytes]:
    found: list[bytes] = []
    for current, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        paths = [Path(current, name) for name in files if name != ".git"]
        paths += [path for name in folders if (path := Path(current, name)).is_symlink()]
        found += [os.fsencode(path.relative_to(root)) for path in paths if path.is_symlink() or path.is_file()]
    return found


async def _measure(git: Git, base: str, commit: str) -> Change:
    plain = ("--no-ext-diff", "--no-textconv", "--no-color")
    added = removed = files = 0
    for line in lines_of(await git.run("diff", *plain, "--numstat", base, commit)):
        plus, minus, _ = line.split("\t", 2)
        files += 1
        added += int(plus) if plus.isdigit() else 0  # "-" for a binary file
        removed += int(minus) if minus.isdigit() else 0
    diff = await git.finish("diff", *plain, "--binary", "--full-index", base, commit, limit=MAX_PATCH_BYTES)
    if diff.returncode != 0 and not diff.cut:
        raise GitError(f"git diff: {diff.stderr.decode('utf-8', 'replace').strip()}")
    return Change(commit, base, files, added, removed, None if diff.cut else diff.stdout)
