"""``taskrunner apply``: the change of a task, merged by real git into a user's repository."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, Finished, is_one_line, private_cli
from tests.support.git_repositories import git

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """One stack for all of these tests; every one has repositories of its own."""
    identity = {f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    with private_cli(**identity, GIT_CONFIG_GLOBAL="/dev/null") as cli, cli.dev():
        yield cli


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return begin(tmp_path / "repository", "one\n")


def begin(folder: Path, content: str) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "file").write_text(content)
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def commit(folder: Path, content: str) -> None:
    (folder / "file").write_text(content)
    git(folder, "commit", "-qam", content.strip())


def state(folder: Path) -> tuple[str, ...]:
    """Everything of a repository that must not change by itself."""
    return (
        git(folder, "rev-parse", "HEAD"),
        git(folder, "status", "--porcelain=v2", "--branch"),
        git(folder, "for-each-ref"),
        git(folder, "stash", "list"),
        (folder / "file").read_text(),
    )


def changed(cli: Cli, repository: Path, prompt: str, *options: str) -> str:
    """Return the id of a task that has changed the repository."""
    finished = cli.run("run", *options, prompt, cwd=repository)
    assert finished.code == 0, finished
    return finished.task_id


def refused(finished: Finished, code: int, *words: str) -> None:
    assert (finished.code, is_one_line(finished)) == (code, True), finished
    for word in words:
        assert word in finished.err, finished


def test_a_change_is_merged_once_into_the_branch_that_is_checked_out(cli: Cli, repository: Path) -> None:
    """S44: fast-forward where nothing happened since, and the second time nothing is done."""
    task = changed(cli, repository, "echo two >> file")
    sub = repository / "sub"
    sub.mkdir()
    applied = cli.run("apply", task, cwd=sub)
    assert (applied.code, applied.out) == (0, ""), applied
    assert applied.err == f"Merged taskrunner/{task} into main: 1 file changed, +1 -0.\n"
    assert (repository / "file").read_text() == "one\ntwo\n"
    before = state(repository)
    again = cli.run("apply", task, "--json", cwd=repository)
    assert (again.code, again.err) == (0, ""), again
    answer = json.loads(again.out)
    assert (answer["state"], answer["into"], answer["conflicts"]) == ("already-merged", "main", [])
    git(repository, "branch", "-D", f"taskrunner/{task}")
    assert "already merged into main" in cli.run("apply", task, cwd=repository).err
    git(repository, "branch", f"taskrunner/{task}", "HEAD")
    assert state(repository) == before


def test_a_change_beside_the_users_own_becomes_a_merge_and_leaves_their_files_alone(cli: Cli, repository: Path) -> None:
    task = changed(cli, repository, "echo new > made")
    commit(repository, "one\nmine\n")
    (repository / "untracked").write_text("kept\n")
    (repository / "file").write_text("one\nmine\nnot committed\n")
    applied = cli.run("apply", task, "--json", cwd=repository)
    assert applied.code == 0, applied
    assert json.loads(applied.out)["state"] == "merged"
    assert git(repository, "log", "-1", "--format=%an %P").count(" ") == 2
    assert (repository / "made").read_text() == "new\n"
    assert (repository / "file").read_text() == "one\nmine\nnot committed\n"
    assert git(repository, "status", "--porcelain") == "M file\n?? untracked"


def test_a_change_in_a_bundle_is_fetched_and_merged_in_any_clone(cli: Cli, repository: Path) -> None:
    task = changed(cli, repository, "echo two >> file", "--backend", "local", "--repo", ".")
    git(repository.parent, "clone", "-q", "repository", "clone")
    clone = repository.parent / "clone"
    only = cli.run("apply", task, "--branch-only", "--json", cwd=clone)
    assert (only.code, json.loads(only.out)["state"], json.loads(only.out)["into"]) == (0, "fetched", None), only
    assert (clone / "file").read_text() == "one\n"
    assert not (clone / ".git" / "FETCH_HEAD").exists()
    again = cli.run("apply", task, "--branch-only", cwd=clone)
    assert (again.code, "is here already" in again.err) == (0, True), again
    assert cli.run("apply", task, cwd=clone).code == 0
    assert (clone / "file").read_text() == "one\ntwo\n"
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{task}-*"))


def test_a_branch_of_another_clone_on_this_machine_is_fetched_from_there(cli: Cli, repository: Path) -> None:
    for name in ("clone", "other"):
        git(repository.parent, "clone", "-q", "repository", name)
    task = changed(cli, repository, "echo two >> file")
    clone, other = repository.parent / "clone", repository.parent / "other"
    assert cli.run("apply", task, cwd=clone).code == 0
    assert (clone / "file").read_text() == "one\ntwo\n"
    shutil.rmtree(repository)
    before = state(other)
    refused(cli.run("apply", task, cwd=other), 1, str(repository), "not here")
    assert state(other) == before


def test_a_conflict_is_the_users_to_resolve_or_to_abort(cli: Cli, repository: Path) -> None:
    task = changed(cli, repository, "echo theirs > file")
    commit(repository, "mine\n")
    before = state(repository)
    conflict = cli.run("apply", task, cwd=repository)
    assert (conflict.code, conflict.out) == (1, ""), conflict
    lines = conflict.err.splitlines()
    assert "CONFLICT (content): Merge conflict in file" in lines
    assert lines[-1].startswith("error: ")
    assert "git merge --continue" in lines[-1]
    assert "git merge --abort" in lines[-1]
    refused(cli.run("apply", task, cwd=repository), 1, "a merge is under way", "git merge --abort")
    git(repository, "merge", "--abort")
    assert state(repository) == before
    told = cli.run("apply", task, "--json", cwd=repository)
    assert (told.code, len(told.err.splitlines())) == (1, 1), told
    assert json.loads(told.out)["conflicts"] == ["file"]


def test_what_cannot_be_applied_is_refused_in_one_line_and_changes_nothing(cli: Cli, repository: Path) -> None:
    task = changed(cli, repository, "echo two >> file")
    unchanged = changed(cli, repository, "true")
    empty = changed(cli, cli.cwd, "echo new > made", "--backend", "local")
    assert cli.run("submit", "--id", "goes-on", "sleep 1000", cwd=repository).code == 0
    elsewhere = begin(repository.parent / "elsewhere", "other\n")
    bare = repository.parent / "bare"
    git(repository.parent, "clone", "-q", "--bare", "repository", "bare")
    (repository / "file").write_text("not committed\n")
    before = state(repository), state(elsewhere), git(bare, "for-each-ref")
    refused(cli.run("apply", task, cwd=repository), 1, "error: file has uncommitted changes; commit or stash them")
    refused(cli.run("apply", unchanged, cwd=repository), 1, "changed nothing")
    refused(cli.run("apply", "goes-on", cwd=repository), 1, "has not ended", "taskrunner events -f goes-on")
    refused(cli.run("apply", "nobody", cwd=repository), 1, "nobody")
    refused(cli.run("apply", task, cwd=cli.cwd), 2, "not a git repository")
    refused(cli.run("apply", task, cwd=elsewhere), 2, "does not have the commit", str(repository))
    refused(cli.run("apply", empty, cwd=repository), 2, "empty folder", f"apply {empty} --branch-only")
    refused(cli.run("apply", empty, "--json", cwd=repository), 2, "empty folder")
    refused(cli.run("apply", task, cwd=bare), 2, "bare", f"apply {task} --branch-only")
    assert (state(repository), state(elsewhere), git(bare, "for-each-ref")) == before
    assert cli.run("cancel", "goes-on").code == 0
    git(repository, "checkout", "-q", "file")
    git(repository, "branch", "-f", f"taskrunner/{task}", "main")
    refused(cli.run("apply", task, cwd=repository), 1, "here already", "git branch -m")
    assert cli.run("apply", empty, "--branch-only", cwd=elsewhere).code == 0
    assert git(elsewhere, "show", f"taskrunner/{empty}:made") == "new"


def test_uncommitted_changes_in_the_way_are_named_a_few_at_most(cli: Cli, repository: Path) -> None:
    names = [f"file-{number} ü" for number in range(5)]
    for name in names:
        (repository / name).write_text("one\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "more")
    task = changed(cli, repository, 'for name in file-*; do echo two >> "$name"; done')
    for name in [*names, "file"]:
        (repository / name).write_text("mine\n")
    told = "file-0 ü, file-1 ü, file-2 ü and 2 more have uncommitted changes; commit or stash them"
    refused(cli.run("apply", task, cwd=repository), 1, f"error: {told}")
    git(repository, "checkout", "-q", *names)
    git(repository, "add", "file")
    git(repository, "commit", "-qm", "mine")
    (repository / "file").write_text("staged\n")
    git(repository, "add", "file")
    refused(cli.run("apply", task, cwd=repository), 1, "error: file has uncommitted changes; commit or stash them")


def test_a_merge_that_a_hook_refuses_is_told_with_the_ways_out(cli: Cli, repository: Path) -> None:
    task = changed(cli, repository, "echo new > made")
    commit(repository, "one\nmine\n")
    hook = repository / ".git" / "hooks" / "pre-merge-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    refused(cli.run("apply", task, cwd=repository), 1, "not today", "git commit", "git merge --abort")
