"""What an agent changed is kept whatever state it left its checkout in, and nothing of the user's moves (S44)."""

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from activities import git_results
from activities.errors import ResultNotSaved
from activities.git import Git
from activities.git_results import Change, Place, make_bundle, save_change
from activities.processes import clean_environment
from tests.support.git_repositories import files_of, git, make_dirty, make_repository, snapshot

BRANCH = "taskrunner/t1"
SIDE = "side\u3000branch\u2028two"
OURS = (".git/worktrees", ".git/refs/heads/taskrunner", ".git/logs/refs/heads/taskrunner")


@dataclass
class Work:
    """A worktree in which an agent works, and what is saved of it."""

    repository: Path
    checkout: Path
    git_dir: Path
    base: str
    scratch: Path
    agents_own: set[str] = field(default_factory=lambda: {".git/refs/heads/agent", ".git/logs/refs/heads/agent"})
    """What in the repository the agent itself changed."""

    async def save(self) -> Change | None:
        env = clean_environment(os.environ)
        place = Place(
            git=Git(cwd=self.git_dir, env=env).at(GIT_DIR=self.git_dir),
            git_dir=self.git_dir,
            checkout=self.checkout,
            scratch=self.scratch,
        )
        return await save_change(place, branch=BRANCH, base=self.base, message="Work of task t1")

    async def saved(self) -> tuple[Change, dict[str, str]]:
        change = await self.save()
        assert change is not None
        assert git(self.repository, "rev-parse", BRANCH) == change.commit
        assert git(self.repository, "merge-base", "--is-ancestor", self.base, change.commit, check=False) == ""
        return change, files_of(self.repository, change.commit)


@pytest.fixture
async def work(tmp_path: Path) -> AsyncIterator[Work]:
    """A worktree of a dirty repository; afterwards the user's own files, index, HEAD and branches must be as before."""
    repository = make_repository(tmp_path / "repository")
    make_dirty(repository)
    checkout = tmp_path / "workspace/checkout"
    git(repository, "worktree", "add", "--quiet", "-b", BRANCH, str(checkout), "main")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = snapshot(repository)
    work = Work(
        repository=repository,
        checkout=checkout,
        git_dir=repository / ".git/worktrees/checkout",
        base=git(repository, "rev-parse", "main"),
        scratch=scratch,
    )
    yield work
    moving = (*OURS, *work.agents_own)
    after = snapshot(repository)
    assert {path: after[path] for path in after if not path.startswith(moving)} == {
        path: before[path] for path in before if not path.startswith(moving)
    }
    assert list(scratch.iterdir()) == []


async def test_no_change_gives_no_result_and_moves_no_branch(work: Work) -> None:
    (work.checkout / "build.ignored").write_text("left out")
    assert await work.save() is None
    assert git(work.repository, "rev-parse", BRANCH) == work.base


async def test_uncommitted_changes_of_every_kind_are_committed_and_ignored_files_are_not(work: Work) -> None:
    """S44"""
    (work.checkout / "README").write_text("changed\n")
    (work.checkout / "src/app.py").unlink()
    (work.checkout / "new file.txt").write_text("new\n")
    (work.checkout / "naïve\n.txt").write_text("odd name\n")
    (work.checkout / "staged.txt").write_text("staged\n")
    git(work.checkout, "add", "staged.txt")
    (work.checkout / "build.ignored").write_text("left out")
    change, files = await work.saved()
    assert sorted(files) == [".gitignore", "README", "naïve\n.txt", "new file.txt", "staged.txt"]
    assert change.files_changed == 5
    assert (change.insertions, change.deletions) == (4, 2)
    assert git(work.repository, "rev-parse", f"{change.commit}^") == work.base
    assert change.patch is not None
    assert b"+changed" in change.patch


async def test_saving_again_gives_the_same_commit(work: Work) -> None:
    (work.checkout / "new.txt").write_text("new\n")
    first, _ = await work.saved()
    second, _ = await work.saved()
    assert first == second


async def test_the_agents_own_commits_are_kept_as_they_are(work: Work) -> None:
    (work.checkout / "new.txt").write_text("new\n")
    git(work.checkout, "add", "--all")
    git(work.checkout, "commit", "--quiet", "-m", "by the agent")
    commit = git(work.checkout, "rev-parse", "HEAD")
    change, _ = await work.saved()
    assert change.commit == commit


@pytest.mark.parametrize("how", ["agent-branch", "detached"])
async def test_work_on_another_branch_or_detached_keeps_that_and_what_was_left_behind(work: Work, how: str) -> None:
    (work.checkout / "left-behind.txt").write_text("on the first branch\n")
    git(work.checkout, "add", "--all")
    git(work.checkout, "commit", "--quiet", "-m", "left behind")
    left = git(work.checkout, "rev-parse", "HEAD")
    git(work.checkout, "checkout", "--quiet", *(("-b", how) if how == "agent-branch" else ("--detach",)), work.base)
    (work.checkout / "committed.txt").write_text("committed\n")
    git(work.checkout, "add", "--all")
    git(work.checkout, "commit", "--quiet", "-m", "elsewhere")
    (work.checkout / "loose.txt").write_text("loose\n")
    change, files = await work.saved()
    assert {"committed.txt", "loose.txt"} <= set(files)
    assert "left-behind.txt" not in files  # the tree is what the checkout holds
    assert left in git(work.repository, "rev-list", change.commit).split()


async def test_a_renamed_branch_and_an_unborn_head_lose_nothing(work: Work) -> None:
    git(work.checkout, "branch", "-m", "agent-renamed")
    git(work.checkout, "checkout", "--quiet", "--orphan", "agent-orphan")
    (work.checkout / "new.txt").write_text("new\n")
    _, files = await work.saved()
    assert {"README", "new.txt"} <= set(files)


async def test_locks_that_a_killed_git_left_behind_are_no_obstacle(work: Work) -> None:
    (work.repository / f".git/refs/heads/{BRANCH}.lock").touch()
    (work.git_dir / "index.lock").touch()
    (work.git_dir / "HEAD.lock").touch()
    (work.checkout / "new.txt").write_text("new\n")
    _, files = await work.saved()
    assert "new.txt" in files


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
async def test_a_broken_index_is_no_obstacle(work: Work, content: bytes) -> None:
    (work.git_dir / "index").write_bytes(content)
    (work.checkout / "new.txt").write_text("new\n")
    _, files = await work.saved()
    assert sorted(files) == [".gitignore", "README", "new.txt", "src/app.py"]


async def test_in_the_middle_of_a_merge_the_checkout_is_kept_with_its_conflict(work: Work) -> None:
    git(work.checkout, "checkout", "--quiet", "-b", "agent-side")
    (work.checkout / "README").write_text("side\n")
    git(work.checkout, "commit", "--quiet", "-am", "side")
    git(work.checkout, "checkout", "--quiet", BRANCH)
    (work.checkout / "README").write_text("ours\n")
    git(work.checkout, "commit", "--quiet", "-am", "ours")
    git(work.checkout, "merge", "agent-side", check=False)
    assert (work.git_dir / "MERGE_HEAD").exists()
    _, files = await work.saved()
    assert "<<<<<<<" in files["README"]


async def test_hooks_signing_and_filters_that_call_home_do_not_run(work: Work, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hooks = work.repository / ".git/hooks"
    for name in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "post-checkout"):
        hook = hooks / name
        before = hook.exists()
        assert not before
        hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
        hook.chmod(0o755)
    try:
        (work.checkout / "new.txt").write_text("new\n")
        await work.saved()
    finally:
        for name in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "post-checkout"):
            (hooks / name).unlink()
    assert not ran.exists()


async def test_a_deleted_checkout_keeps_what_was_committed(work: Work) -> None:
    (work.checkout / "new.txt").write_text("new\n")
    git(work.checkout, "add", "--all")
    git(work.checkout, "commit", "--quiet", "-m", "by the agent")
    shutil.rmtree(work.checkout)
    _, files = await work.saved()
    assert {"new.txt", "README"} <= set(files)


async def test_a_deleted_checkout_without_commits_is_no_change(work: Work) -> None:
    shutil.rmtree(work.checkout)
    assert await work.save() is None


async def test_an_emptied_checkout_is_a_change(work: Work) -> None:
    for path in work.checkout.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, files = await work.saved()
    assert files == {}


async def test_a_checkout_replaced_by_a_link_saves_nobody_elses_files(work: Work, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "private.txt").write_text("private")
    shutil.rmtree(work.checkout)
    work.checkout.symlink_to(elsewhere)
    assert await work.save() is None


async def test_links_out_of_the_checkout_are_kept_as_links(work: Work, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "private.txt").write_text("private")
    (work.checkout / "out").symlink_to(elsewhere)
    change, files = await work.saved()
    assert files["out"] == str(elsewhere)
    assert git(work.repository, "ls-tree", change.commit, "out").startswith("120000")


async def test_names_that_hold_other_scripts_white_space_are_kept(work: Work) -> None:
    """Git forbids its own only; Python also ends lines at U+2028, U+2029 and U+0085."""
    names = [f"a{white}b" for white in "\u2028\u2029\x85\u3000\xa0\t\n"]
    for name in names:
        (work.checkout / name).write_text("1\n2\n")
    change = await work.save()
    assert change is not None
    assert (change.files_changed, change.insertions) == (len(names), 2 * len(names))
    listed = git(work.repository, "ls-tree", "-z", "--name-only", change.commit).split("\0")
    assert set(names) <= set(listed)


async def test_special_files_are_passed_over(work: Work) -> None:
    os.mkfifo(work.checkout / "pipe")
    (work.checkout / "new.txt").write_text("new\n")
    _, files = await work.saved()
    assert sorted(files) == [".gitignore", "README", "new.txt", "src/app.py"]


async def test_repositories_inside_the_checkout_are_kept_as_files(work: Work) -> None:
    with_commits = make_repository(work.checkout / "vendor/lib")
    (with_commits / "loose.txt").write_text("loose\n")
    (with_commits / "x.ignored").write_text("left out\n")
    make_repository(with_commits / "deeper")
    without_commits = work.checkout / "fresh [1]"
    without_commits.mkdir()
    git(without_commits, "init", "--quiet")
    (without_commits / "a.txt").write_text("a\n")
    broken = work.checkout / "broken"
    broken.mkdir()
    (broken / ".git").write_text("gitdir: /nowhere\n")
    (broken / "b.txt").write_text("b\n")
    added = make_repository(work.checkout / "added")
    git(work.checkout, "add", "added")
    git(work.checkout, "commit", "--quiet", "-m", "a repository added as a link")
    _, files = await work.saved()
    assert {
        "vendor/lib/README",
        "vendor/lib/loose.txt",
        "vendor/lib/deeper/src/app.py",
        "fresh [1]/a.txt",
        "added/README",
    } <= set(files)
    assert "vendor/lib/x.ignored" not in files
    assert files["broken/b.txt"] == "b"
    assert not any(".git/" in name for name in files)
    assert added.exists()


async def test_a_sparse_checkout_deletes_nothing(work: Work) -> None:
    git(work.checkout, "sparse-checkout", "set", "--no-cone", "/README")
    work.agents_own.add(".git/config")  # that command of the agent's writes there
    assert not (work.checkout / "src").exists()
    (work.checkout / "new.txt").write_text("outside of the cone\n")
    change, files = await work.saved()
    assert sorted(files) == [".gitignore", "README", "new.txt", "src/app.py"]
    assert change.files_changed == 1


async def test_large_patches_are_left_out_and_the_branch_still_has_all(work: Work) -> None:
    (work.checkout / "big.bin").write_bytes(os.urandom(5 * 1024 * 1024))
    change = await work.save()
    assert change is not None
    assert change.patch is None
    assert git(work.repository, "cat-file", "-s", f"{change.commit}:big.bin") == str(5 * 1024 * 1024)


async def test_a_repository_that_cannot_be_written_fails_and_leaves_the_work(work: Work, tmp_path: Path) -> None:
    (work.checkout / "new.txt").write_text("new\n")
    moved = tmp_path / "moved"
    work.repository.rename(moved)
    try:
        with pytest.raises(ResultNotSaved, match=str(work.checkout)):
            await work.save()
        assert (work.checkout / "new.txt").exists()
    finally:
        moved.rename(work.repository)


async def test_a_bundle_holds_the_branch_and_what_other_branches_and_the_stash_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = make_repository(tmp_path / "origin")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    base = git(clone, "rev-parse", "HEAD")
    (clone / "README").write_text("stashed\n")
    git(clone, "stash")
    git(clone, "checkout", "--quiet", "-b", SIDE)
    (clone / "side.txt").write_text("side\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "-m", "side")
    git(clone, "checkout", "--quiet", "-b", BRANCH, base)
    (clone / "new.txt").write_text("new\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "-m", "result")
    runner = Git(cwd=clone, env=clean_environment(os.environ))
    file = tmp_path / "result.bundle"
    file.write_bytes(await make_bundle(runner, branch=BRANCH, base=base))
    heads = {line.partition(" ")[2] for line in git(origin, "bundle", "list-heads", str(file)).split("\n")}
    assert heads == {f"refs/heads/{BRANCH}", f"refs/heads/{SIDE}", "refs/stash"}
    git(origin, "fetch", "--quiet", str(file), f"{BRANCH}:{BRANCH}")
    assert "new.txt" in files_of(origin, BRANCH)

    monkeypatch.setattr(git_results, "MAX_BUNDLE_BYTES", 100)
    with pytest.raises(ResultNotSaved, match=BRANCH):
        await make_bundle(runner, branch=BRANCH, base=base)
