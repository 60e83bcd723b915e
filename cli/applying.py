"""What ``taskrunner apply`` does: a task's branch, fetched into the repository around us and merged there by git."""

import json
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from cli import render
from cli.api_commands import call_api
from cli.errors import CliError, Refused, UsageError
from cli.repository import find_repository, run_git
from messages.tasks import SavedResult
from messages.urls import without_user_info
from messages.views import TaskView

_IN_PROGRESS = {
    "MERGE_HEAD": ("merge", "git merge"),
    "CHERRY_PICK_HEAD": ("cherry-pick", "git cherry-pick"),
    "REVERT_HEAD": ("revert", "git revert"),
    "rebase-merge": ("rebase", "git rebase"),
    "rebase-apply": ("rebase", "git rebase"),
}
"""By the file in the git folder that tells of it: what is under way, and whose --continue or --abort ends it."""

_FILES_NAMED = 3

_PLACES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}
"""Variables that point git elsewhere, as in a hook."""


def apply(task_id: str, *, branch_only: bool, as_json: bool) -> int:
    """Get the task's branch, merge it unless ``branch_only``, say what came of it, and return the exit code.

    Raises ``UsageError`` where this is not the place for it, ``Refused`` and ``CliError`` where there is nothing to
    apply or git does not do it; the repository is then as it was, but that the branch may have been fetched.
    """
    folder = find_repository(Path.cwd())
    if folder is None:
        raise UsageError("this is not a git repository; change to the one that the change is to go into")
    repository = _Repository(folder)
    task = call_api(lambda api: api.task(task_id))
    result = _result(task)
    if branch_only:
        state = "fetched" if _obtain(repository, task, result) else "present"
        _say(task, result, state, as_json, into=None)
        return 0
    if repository.is_bare:
        raise UsageError(
            f"{folder} is a bare repository, without a checkout to merge into; get the branch alone:"
            f" taskrunner apply {task.id} --branch-only"
        )
    into = repository.ask("symbolic-ref", "--short", "--quiet", "HEAD") or "the detached HEAD"
    if repository.holds(result.commit, "HEAD"):
        _say(task, result, "already-merged", as_json, into=into)
        return 0
    repository.refuse_while_busy()
    if not repository.knows(result.base_commit):
        raise UsageError(_other_repository(folder, task, result))
    _obtain(repository, task, result)
    return _merge(repository, task, result, into, as_json)


def _result(task: TaskView) -> SavedResult:
    if not task.status.is_final:
        step = f", {render.step_text(task.step)}" if task.step else ""
        raise Refused(f"task {task.id} has not ended ({task.status.value}{step}); see: taskrunner events -f {task.id}")
    if task.result is None:
        raise Refused(f"task {task.id} ({task.status.value}) changed nothing; there is nothing to apply")
    return task.result


def _merge(repository: "_Repository", task: TaskView, result: SavedResult, into: str, as_json: bool) -> int:
    done = repository.run("merge", "--no-edit", result.branch)
    if done.returncode == 0:
        _say(task, result, "merged", as_json, into=into)
        return 0
    said = render.shorten(f"{done.stdout} {done.stderr}", 1000)
    if not repository.is_busy("MERGE_HEAD"):
        if "local changes" in done.stderr and (names := _uncommitted(repository, result)):
            has = "has" if len(names) == 1 else "have"
            raise Refused(f"{_listed(names)} {has} uncommitted changes; commit or stash them, then apply again")
        raise CliError(f"git does not merge {result.branch} into {into}, and has changed nothing: {said}")
    conflicts = repository.differing("--diff-filter=U")
    if not conflicts:  # as where a hook says no, or git does not know the user's name
        raise CliError(
            f"{result.branch} is merged but not committed: {said}; finish with git commit, or undo it with"
            " git merge --abort"
        )
    if as_json:
        _say(task, result, "conflict", as_json, into=into, conflicts=conflicts)
    else:
        render.say("\n".join(map(render.printable, done.stdout.rstrip().splitlines())))
    files = f"{len(conflicts)} file{'' if len(conflicts) == 1 else 's'}"
    raise CliError(
        f"{result.branch} and {into} changed the same lines of {files}; resolve them, git add them and finish with"
        " git merge --continue, or undo the merge with git merge --abort"
    )


def _uncommitted(repository: "_Repository", result: SavedResult) -> list[str]:
    """Return the files for which git refuses the merge: changed here and there, else whatever is staged."""
    there = set(repository.differing("--no-renames", f"HEAD...{result.branch}"))
    return [name for name in repository.differing("HEAD") if name in there] or repository.differing("--cached")


def _listed(names: list[str]) -> str:
    more = len(names) - _FILES_NAMED
    shown = ", ".join(map(render.printable, names[:_FILES_NAMED]))
    return f"{shown} and {more} more" if more > 0 else shown


def _obtain(repository: "_Repository", task: TaskView, result: SavedResult) -> bool:
    """Make sure that the branch is there and holds the change; return whether it had to be made."""
    ref = f"refs/heads/{result.branch}"
    if repository.knows(ref):
        if repository.holds(result.commit, ref):
            return False
        raise Refused(
            f"the branch {result.branch} is here already, without the task's commit {result.commit[:12]};"
            f" rename it, then apply again: git branch -m {result.branch} {result.branch}-old"
        )
    if repository.knows(result.commit):  # as where the branch was deleted
        done = repository.run("branch", "--no-track", result.branch, result.commit)
        if done.returncode != 0:
            raise CliError(f"the branch {result.branch} cannot be made: {render.shorten(done.stderr, 1000)}")
        return True
    with _source(repository, task, result) as source:
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-prune", "--no-recurse-submodules")
        done = repository.run("fetch", *options, source, f"{ref}:{ref}")
    if done.returncode != 0:
        if "prerequisite commit" in done.stderr:
            raise UsageError(_other_repository(repository.folder, task, result))
        raise CliError(f"{result.branch} cannot be fetched from {source}: {render.shorten(done.stderr, 1000)}")
    return True


@contextmanager
def _source(repository: "_Repository", task: TaskView, result: SavedResult) -> Generator[str]:
    """Yield what git can fetch the branch from: a bundle out of the API, or the repository that has it."""
    if result.pushed_to:
        yield repository.remote_at(result.pushed_to) or result.pushed_to
        return
    if result.bundle:
        content = call_api(lambda api: api.bundle(task.id))
        with tempfile.NamedTemporaryFile(prefix=f"{task.id}-", suffix=".bundle") as file:
            file.write(content)
            file.flush()
            yield file.name
        return
    path = result.repository_path
    if path is None or not Path(path).exists():
        host = task.repository.host if task.repository else None
        where = f"{path or 'another repository'}{f' on host {host}' if host else ''}"
        raise Refused(
            f"the branch {result.branch} is in {where}, which is not here; fetch it from there with git fetch"
        )
    yield path


def _other_repository(folder: Path, task: TaskView, result: SavedResult) -> str:
    if task.repository is None:
        return (
            f"task {task.id} worked in an empty folder, not on {folder}; get its files with:"
            f" taskrunner apply {task.id} --branch-only && git log -p {result.branch}"
        )
    where = task.repository.path or task.repository.url
    return (
        f"{folder} does not have the commit {result.base_commit[:12]} from which task {task.id} started; change to a"
        f" clone of {where} that has it, or git fetch first"
    )


def _say(
    task: TaskView,
    result: SavedResult,
    state: str,
    as_json: bool,
    *,
    into: str | None,
    conflicts: list[str] | None = None,
) -> None:
    if as_json:
        answer = {"task_id": task.id, "state": state, "branch": result.branch, "commit": result.commit, "into": into}
        click.echo(json.dumps(answer | {"conflicts": conflicts or []}))
        return
    change = render.change_text(result)
    text = {
        "merged": f"Merged {result.branch} into {into}: {change}.",
        "already-merged": f"{result.branch} is already merged into {into}; nothing to do.",
        "fetched": f"The branch {result.branch} is here now: {change}. See: git log -p {result.branch}",
        "present": f"The branch {result.branch} is here already: {change}. See: git log -p {result.branch}",
    }
    render.say(text[state])


class _Repository:
    """The repository around us, asked and changed by git with the user's own settings and environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_bare = self.ask("rev-parse", "--is-inside-work-tree") != "true"

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run git in the repository, which the folder alone names; its words are English, for us to understand."""
        env = {name: value for name, value in os.environ.items() if name not in _PLACES}
        return run_git(self.folder, *args, env={**env, "LC_ALL": "C.UTF-8", "LANGUAGE": ""})

    def ask(self, *args: str) -> str:
        """Return what git answers, empty where it fails."""
        done = self.run(*args)
        return done.stdout.rstrip("\n") if done.returncode == 0 else ""

    def differing(self, *args: str) -> list[str]:
        """Return the files that ``git diff`` with these arguments is about, from the top of the repository."""
        return [name for name in self.ask("diff", "--name-only", "-z", *args).split("\0") if name]

    def knows(self, revision: str) -> bool:
        """Tell whether there is such a commit."""
        return self.run("cat-file", "-e", f"{revision}^{{commit}}").returncode == 0

    def holds(self, commit: str, revision: str) -> bool:
        """Tell whether ``commit`` is ``revision`` or an ancestor of it; False where either is not here."""
        return self.run("merge-base", "--is-ancestor", commit, revision).returncode == 0

    def remote_at(self, url: str) -> str | None:
        """Return the user's own name of the remote at ``url``: its address may say more, as who they are there."""
        for name in self.ask("remote").splitlines():
            if without_user_info(self.ask("remote", "get-url", name)) == url:
                return name
        return None

    def is_busy(self, mark: str) -> bool:
        """Tell whether what leaves ``mark`` in the git folder is under way."""
        return (self.folder / self.ask("rev-parse", "--git-path", mark)).exists()

    def refuse_while_busy(self) -> None:
        """Raise ``Refused`` where git is in the middle of something."""
        for mark, (what, command) in _IN_PROGRESS.items():
            if self.is_busy(mark):
                raise Refused(
                    f"a {what} is under way in {self.folder}; finish it with {command} --continue or undo it with"
                    f" {command} --abort, then apply again"
                )
