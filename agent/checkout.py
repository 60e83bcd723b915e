"""Prepares the checkout with git, whatever the configuration and hooks of the machine's user are."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Callable, Optional

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Checkout

Run = Callable[[list[str], "Path", "dict[str, str]"], str]
"""Runs a program in a folder with an environment and returns its output; raises :class:`StepFailed`."""

BASE_REF = "refs/taskrunner/base"
"""Points to the commit that the checkout was prepared at."""

_REMOTE = "refs/remotes/origin/"

_SETTINGS = (
    ("core.hooksPath", "/dev/null"),
    ("commit.gpgSign", "false"),
    ("init.defaultBranch", "main"),
    ("advice.detachedHead", "false"),
    ("user.name", "taskrunner"),
    ("user.email", "taskrunner@localhost"),
)


class StepFailed(Exception):
    """A step of the boot failed; the text is one line that says which and how."""


def prepare_checkout(checkout: Checkout, folder: Path, run: Run) -> None:
    """Make ``folder`` what ``checkout`` says; one left half done is made anew. Raises :class:`StepFailed`."""
    if checkout.kind == "none":
        if not folder.is_dir():
            raise StepFailed(f"checkout: {str(folder)!r} is not a directory")
        return
    git = _Git(run, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not (folder / ".git").exists() and folder.exists() and any(folder.iterdir()):
            raise StepFailed(f"checkout: {str(folder)!r} is not empty")
        if checkout.kind == "empty":
            folder.mkdir(exist_ok=True)
            git("init", "--quiet")
            if not git.has("HEAD"):
                git("commit", "--quiet", "--allow-empty", "--no-verify", "-m", "Empty workspace")
            git("update-ref", BASE_REF, "HEAD")
        elif not (folder / ".git").exists():
            # Cloned beside it and moved there whole, so that a .git in place is always a finished clone.
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                git("clone", "--quiet", "--no-checkout", "--", checkout.url, str(partial), at=folder.parent)
                inner = _Git(run, partial)
                _check_out(_as_of_its_remote(checkout, inner) if checkout.mirrored else checkout, inner)
                partial.replace(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as e:
        raise StepFailed(f"checkout: {e.filename or folder}: {e.strerror}") from e


def _as_of_its_remote(checkout: Checkout, git: _Git) -> Checkout:
    """Make the clone of a mirror what a clone of the mirrored repository would be; name its default branch."""
    git.leaves_large_files_out()
    git("fetch", "--quiet", "--prune", "origin", f"+{_REMOTE}*:{_REMOTE}*", f"^{_REMOTE}HEAD")
    named = git("ls-remote", "--symref", "origin", f"{_REMOTE}HEAD").partition("\t")[0]
    git("remote", "set-url", "origin", str(checkout.mirrored))
    default = named[len(f"ref: {_REMOTE}") :] if named.startswith("ref: ") else None
    if default is not None:
        git("symbolic-ref", f"{_REMOTE}HEAD", f"{_REMOTE}{default}")
    return checkout._replace(ref=checkout.ref or default)


def _check_out(checkout: Checkout, git: _Git) -> None:
    if checkout.commit is None and not git.has(checkout.ref or "HEAD") and not git.has(f"origin/{checkout.ref}"):
        if checkout.ref is None:
            raise StepFailed("checkout: the repository has no commit")
        raise StepFailed(f"checkout: the repository has no branch, tag or commit {checkout.ref!r}")
    commit = None
    if checkout.commit is not None:
        commit = git.found(checkout.commit)
        if commit is None:
            git("fetch", "--quiet", "origin", checkout.commit)
            commit = git.commit(checkout.commit)
    branch = checkout.ref or git.branch()
    if branch is not None and (head := git.found(f"refs/remotes/origin/{branch}")) is not None:
        git("checkout", "--quiet", "--no-track", "-B", branch, commit or head)
        if checkout.ref is not None:  # else it is the branch that the clone is on, which follows origin's already
            git("branch", "--quiet", f"--set-upstream-to=origin/{branch}", branch)
    else:
        git("checkout", "--quiet", "--detach", commit or git.commit(checkout.ref or "HEAD"))
    git("update-ref", BASE_REF, "HEAD")


class _Git:
    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        # GIT_DIR and the like would lead elsewhere; how to reach a server by SSH is the backend's to say.
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_SSH")}
        self._env["GIT_TERMINAL_PROMPT"] = "0"

    def __call__(self, *arguments: str, at: Path | None = None) -> str:
        settings = [part for key, value in _SETTINGS for part in ("-c", f"{key}={value}")]
        return self._run(["git", *settings, *arguments], at or self._folder, self._env).strip()

    def leaves_large_files_out(self) -> None:
        """Leave the pointers of Git LFS as they are: what they point to is not in a mirror."""
        self._env["GIT_LFS_SKIP_SMUDGE"] = "1"

    def branch(self) -> Optional[str]:
        """Return the branch that HEAD is on; None where it is detached."""
        try:
            return self("symbolic-ref", "--short", "HEAD")
        except StepFailed:
            return None

    def has(self, revision: str) -> bool:
        return self.found(revision) is not None

    def found(self, revision: str) -> Optional[str]:
        """Return the commit that it names; None where there is none."""
        try:
            return self.commit(revision)
        except StepFailed:
            return None

    def commit(self, revision: str) -> str:
        if revision.startswith("-"):
            raise StepFailed(f"checkout: {revision!r} names no commit")
        return self("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
