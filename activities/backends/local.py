"""Backend ``local``: a folder of its own on this host, empty or a clone of a repository there."""

from pathlib import Path
from typing import Any, ClassVar

from activities.backends.contract import Report, SavedChange, WorkspaceSpec
from activities.backends.host import ComputeRecord, HostBackend
from activities.errors import InvalidTask, ProvisionFailed, ResultNotSaved
from activities.files import is_real_folder, remove_tree
from activities.git import Git, GitError, check_repository
from activities.git_results import Place, make_bundle, save_change
from activities.subprocesses import run_program
from activities.threads import to_its_end
from agent.checkout import BASE_REF
from messages.callbacks import log_tail
from messages.names import result_branch
from messages.statuses import BackendKind, FailureSource, Readiness
from messages.tasks import TaskInput

_LONG_AGO = "2000-01-01T00:00:00Z"


class LocalBackend(HostBackend):
    """Workspaces with a repository of their own; the result is a git bundle.

    With readiness ``immediate`` the checkout is there before the agent starts, otherwise the agent makes it.
    """

    kind: ClassVar[BackendKind] = BackendKind.LOCAL

    async def _check_repository(self, task: TaskInput) -> str | None:
        if task.repository is None:
            await self._git(Path("/")).run("--version")
            if task.ref:
                raise InvalidTask(f"ref {task.ref!r} needs a repository; give one, or leave the ref out")
            return None
        if task.repository.url is not None:
            return await self._check_url(task.repository.url, task.ref)
        return await check_repository(self._git(self._repository(task.repository)), task.ref)

    def _checkout_config(self, spec: WorkspaceSpec) -> dict[str, Any]:
        repository = spec.task.repository
        if repository is None:
            return {"kind": "empty"}
        source = str(self._repository(repository))
        clone = {"kind": "clone", "url": source, "ref": spec.task.ref, "commit": spec.base_commit}
        return {**clone, "mirrored": repository.url} if repository.url else clone

    async def _prepare(self, spec: WorkspaceSpec, record: ComputeRecord, folder: Path, lock: int) -> ComputeRecord:
        if spec.template.effective_readiness is not Readiness.IMMEDIATE:
            return record
        finished = await run_program(self._agent_argv("prepare", folder), cwd=folder, env=self._env, keep_open=[lock])
        if finished.returncode != 0:
            said = finished.stderr.decode("utf-8", "replace").strip()
            last = said.splitlines()[-1] if said else f"exit code {finished.returncode}"
            raise ProvisionFailed(
                f"the checkout cannot be made: {last}", source=FailureSource.BOOTSTRAP, detail=log_tail(said)
            )
        return record

    async def _save(self, record: ComputeRecord, folder: Path, base: str | None, lost: Report) -> SavedChange | None:
        checkout = folder / "checkout"
        if not record.prepared or not is_real_folder(checkout):
            return None  # the repository was in it
        branch = result_branch(record.task_id)
        base = record.base_commit or base
        try:
            git_dir = await self._usable_git_dir(folder)
            git = self._git(git_dir).at(GIT_DIR=git_dir)
            if record.repository:  # the base is found there even if the agent made its repository anew
                objects = await self._git(Path(record.repository)).common_dir() / "objects"
                git = git.at(GIT_ALTERNATE_OBJECT_DIRECTORIES=objects)
            start = base or await _empty_start(git)
            place = Place(git=git, git_dir=git_dir, checkout=checkout, scratch=folder)
            change = await save_change(place, branch=branch, base=start, message=f"Work of task {record.task_id}")
            saved: SavedChange | None = None
            if change is not None and record.url:
                saved = await self._save_elsewhere(record, folder, git, change, branch, alone=False)
            elif change is not None:
                bundle = await make_bundle(git, branch=branch, base=base)
                saved = self._saved(record, branch, change, bundle)
        except (GitError, OSError) as e:
            raise ResultNotSaved(f"the result cannot be kept: {e}; it is still in {checkout}") from e
        await self._say_what_is_lost(place, start, change, lost)
        return saved

    async def _usable_git_dir(self, folder: Path) -> Path:
        """Return the checkout's git folder, or a new one where the agent removed or broke it."""
        checkout = folder / "checkout"
        inside = self._git(checkout).at(GIT_CEILING_DIRECTORIES=folder)
        found = await inside.ask("rev-parse", "--absolute-git-dir")
        if found:
            return Path(found)
        rescue = folder / "git"
        await to_its_end(remove_tree, rescue)
        await self._git(folder).run("init", "--quiet", "--bare", str(rescue))
        objects = checkout / ".git" / "objects"
        if is_real_folder(objects):
            (rescue / "objects" / "info" / "alternates").write_text(f"{objects}\n")
        return rescue


async def _empty_start(git: Git) -> str:
    """Return the commit without files that an empty workspace began with; one is made where the agent removed it."""
    empty = await git.run("hash-object", "-t", "tree", "-w", "--stdin")
    roots = await git.ask("rev-list", "--max-parents=0", "HEAD") or ""
    for start in (await git.commit_of(BASE_REF), *roots.split()):
        if start and await git.run("rev-parse", f"{start}^{{tree}}") == empty:
            return start
    dated = git.at(GIT_AUTHOR_DATE=_LONG_AGO, GIT_COMMITTER_DATE=_LONG_AGO)
    return await dated.run("commit-tree", empty, "-m", "Empty workspace")
