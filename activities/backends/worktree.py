"""Backend ``worktree``: a git worktree of the user's repository on this host, on a branch of its own."""

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from activities.backends.contract import Report, SavedChange, WorkspaceSpec
from activities.backends.host import ComputeRecord, HostBackend
from activities.errors import InvalidTask, ProvisionFailed, ResultNotSaved
from activities.files import exclusive, remove_tree
from activities.git import Git, GitError, check_repository, check_result_branch
from activities.git_results import Place, save_change
from activities.threads import to_its_end
from messages.names import result_branch
from messages.statuses import BackendKind, FailureSource
from messages.tasks import TaskInput

_TRIES = 5
_MET_ANOTHER = re.compile(r"worktrees/\S+/(commondir|gitdir|HEAD)")
"""What git says of another worktree of the repository that is not whole yet."""


class WorktreeBackend(HostBackend):
    """Workspaces that share the repository's objects; the result is a branch in it, or a bundle where it is a mirror.

    Made in the repository: one branch and one entry of ``worktrees/``. The user's checkout, index, HEAD, configuration
    and other branches are never touched.
    """

    kind: ClassVar[BackendKind] = BackendKind.WORKTREE

    async def _check_repository(self, task: TaskInput) -> str | None:
        if task.repository is None:
            raise InvalidTask("backend worktree needs a repository: give a path on this host or a URL, or use local")
        if task.repository.url is not None:
            return await self._check_url(task.repository.url, task.ref)
        assert task.repository.path is not None
        git = self._git(Path(task.repository.path))
        commit, branch = await asyncio.gather(
            check_repository(git, task.ref), check_result_branch(git, task.task_id), return_exceptions=True
        )
        if isinstance(commit, BaseException):
            raise commit  # of both the one that says what is wrong with the repository
        if branch is not None:
            raise branch
        return commit

    def _checkout_config(self, spec: WorkspaceSpec) -> dict[str, Any]:  # noqa: ARG002 (the agent has nothing to do)
        return {"kind": "none"}

    async def _prepare(self, spec: WorkspaceSpec, record: ComputeRecord, folder: Path, lock: int) -> ComputeRecord:
        assert record.repository is not None
        base = spec.base_commit
        if base is None:
            raise ProvisionFailed("preflight found no commit to start from", source=FailureSource.PREFLIGHT)
        git = self._git(Path(record.repository), lock)
        if record.url:  # a worktree of a mirror has no Git LFS files beside it
            git = git.at(GIT_LFS_SKIP_SMUDGE="1")
        try:
            common = await git.common_dir()
            record = record.model_copy(update={"common_dir": str(common)})
            # An earlier workspace of the same task may have left its result under the plain name: that stays.
            branch, number = result_branch(record.task_id), 1
            while await git.commit_of(f"refs/heads/{branch}"):
                number += 1
                branch = f"{result_branch(record.task_id)}-{number}"
            record = record.model_copy(update={"branch": branch})
            self._write(folder, record)
            async with exclusive(self._repository_lock(common), create=True) as repository_lock:
                assert repository_lock is not None
                await self._add_worktree(replace(git, keep_open=(lock, repository_lock)), record, folder, base)
            # What git wrote is whole by now, and stays so: others need not wait for the rest.
            made = folder / folder.name
            await to_its_end(_move_worktree, _admin_folder(record, folder), made, folder / "checkout")
        except (GitError, OSError) as e:
            raise ProvisionFailed(
                f"the worktree of {record.repository} cannot be made: {e}", source=FailureSource.PROVIDER
            ) from e
        return record

    def _repository_lock(self, common: Path) -> Path:
        """Return what is locked to add a worktree: git cannot read another one that is being added right then."""
        name = hashlib.sha256(os.fsencode(common)).hexdigest()[:16]
        return self._home / "repositories" / name / "lock"

    async def _add_worktree(self, git: Git, record: ComputeRecord, folder: Path, base: str) -> None:
        assert record.branch is not None
        # Git names its entry after the folder, so that even half an entry can be told by its name.
        made = folder / folder.name
        for tries_left in reversed(range(_TRIES)):
            try:
                await git.run("worktree", "add", "--quiet", "--no-track", "-b", record.branch, str(made), base)
                break
            except GitError as e:
                # The user, or an agent, adds one too, and cannot be kept from it.
                if not tries_left or not _MET_ANOTHER.search(str(e)):
                    raise
                await self._forget(record, folder)

    async def _recover(self, spec: WorkspaceSpec) -> ComputeRecord:
        record = self._new_record(spec)
        assert record.repository is not None
        common = await self._git(Path(record.repository)).common_dir()
        return record.model_copy(update={"common_dir": str(common), "branch": result_branch(record.task_id)})

    async def _save(self, record: ComputeRecord, folder: Path, base: str | None, lost: Report) -> SavedChange | None:
        base = record.base_commit or base
        if not record.prepared or record.branch is None or base is None:
            return None
        branch, checkout = record.branch, folder / "checkout"
        try:
            git_dir = await self._usable_git_dir(record, folder, branch)
            git = self._git(git_dir).at(GIT_DIR=git_dir)
            place = Place(git=git, git_dir=git_dir, checkout=checkout, scratch=folder)
            change = await save_change(place, branch=branch, base=base, message=f"Work of task {record.task_id}")
            saved: SavedChange | None = None
            if change is not None and record.url:
                saved = await self._save_elsewhere(record, folder, git, change, branch, alone=True)
            elif change is not None:
                saved = self._saved(record, branch, change, None)
        except (GitError, OSError) as e:
            raise ResultNotSaved(
                f"the result cannot be kept in {record.repository}: {e}; it is still in {checkout}"
            ) from e
        await self._say_what_is_lost(place, base, change, lost)
        return saved

    async def _usable_git_dir(self, record: ComputeRecord, folder: Path, branch: str) -> Path:
        """Return the worktree's own git folder, or one in its place where the agent broke or pruned it."""
        admin = _admin_folder(record, folder)
        if await self._git(admin).at(GIT_DIR=admin).ask("rev-parse", "--git-common-dir"):
            return admin
        stand_in = folder / "git"
        await to_its_end(remove_tree, stand_in)
        stand_in.mkdir()
        (stand_in / "HEAD").write_text(f"ref: refs/heads/{branch}\n")
        (stand_in / "commondir").write_text(f"{record.common_dir}\n")
        return stand_in

    async def _forget(self, record: ComputeRecord, folder: Path) -> None:
        if record.common_dir is None:
            return
        common = Path(record.common_dir)
        there = await to_its_end(_remove_admin_folder, _admin_folder(record, folder))
        await to_its_end(remove_tree, folder / folder.name)
        if there and record.branch and record.base_commit:
            await self._drop_branch(common, record.branch, {record.base_commit, record.saved})

    async def _drop_branch(self, common: Path, branch: str, kept: Collection[str | None]) -> None:
        """Delete the branch if it stands at one of the commits that are kept elsewhere: then it keeps nothing."""
        git = self._git(common).at(GIT_DIR=common)
        ref = common / "refs/heads" / branch
        ref.with_name(f"{ref.name}.lock").unlink(missing_ok=True)
        tip = await git.commit_of(f"refs/heads/{branch}")
        if tip and tip in kept:
            try:
                await git.run("update-ref", "-d", f"refs/heads/{branch}", tip)
            except GitError as e:
                raise OSError(f"branch {branch} in {common}: {e}") from e
        if not await git.commit_of(f"refs/heads/{branch}"):
            await to_its_end(_remove_branch_files, common, branch)


def _remove_branch_files(common: Path, branch: str) -> None:
    """Remove what a killed git left of a branch that does not exist: its empty log, their folders."""
    for folder in (common / "refs/heads", common / "logs/refs/heads"):
        path = folder / branch
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size == 0:
                path.unlink()
            path.parent.rmdir()


def _admin_folder(record: ComputeRecord, folder: Path) -> Path:
    """Return the worktree's entry in the repository, whether it is there or not."""
    assert record.common_dir is not None
    return Path(record.common_dir, "worktrees", folder.name)


def _move_worktree(admin: Path, made: Path, checkout: Path) -> None:
    made.rename(checkout)
    partial = admin / "gitdir.new"
    partial.write_text(f"{checkout.resolve() / '.git'}\n")
    partial.replace(admin / "gitdir")


def _remove_admin_folder(admin: Path) -> bool:
    """Remove a worktree's entry, whatever state it is in; False where the whole repository is gone."""
    if not admin.parent.parent.is_dir():
        return False
    remove_tree(admin)
    with contextlib.suppress(OSError):  # others are in it, or it is gone
        admin.parent.rmdir()
    return True
