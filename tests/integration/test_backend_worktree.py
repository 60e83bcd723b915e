"""Backend ``worktree``: the user's repository gains a branch where something changed, and nothing else."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.backends.contract import WorkspaceSpec
from activities.backends.worktree import WorktreeBackend
from activities.errors import InvalidTask, ProvisionFailed, ResultNotSaved
from messages.names import result_branch
from messages.statuses import BackendKind
from messages.tasks import Repository
from tests.support.git_repositories import files_of, git, make_dirty, make_repository, snapshot
from tests.support.hosts import make_spec, make_task


class Host:
    """A backend, a repository whose user is in the middle of something, and one workspace."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.home = folder / "home"
        self.repository = repository
        self.backend = WorktreeBackend(self.home, environ=os.environ, stop_grace_seconds=0.5)
        self.spec = self.make_spec()

    def make_spec(self) -> WorkspaceSpec:
        task = make_task(BackendKind.WORKTREE, self.repository)
        return make_spec(task, git(self.repository, "rev-parse", "HEAD"))

    @property
    def branch(self) -> str:
        return result_branch(self.spec.compute.task_id)

    @property
    def folder(self) -> Path:
        return self.home / "workspaces" / self.spec.compute.name

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    def branches(self) -> list[str]:
        return git(self.repository, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    repository = make_repository(tmp_path / "repository")
    make_dirty(repository)
    host = Host(tmp_path, repository)
    yield host
    for compute in await host.backend.list_owned():
        await host.backend.destroy(compute)


@pytest.mark.parametrize("head", ["main", "detached", "packed", "bare"])
async def test_a_change_becomes_a_branch_and_the_users_checkout_does_not_move(tmp_path: Path, head: str) -> None:
    """S44: compared byte by byte, before and after."""
    repository = make_repository(tmp_path / "repository")
    if head == "bare":
        git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
        repository = tmp_path / "bare.git"
    else:
        make_dirty(repository)
    if head == "detached":
        git(repository, "checkout", "--quiet", "--detach")
    if head == "packed":
        git(repository, "pack-refs", "--all")
    host = Host(tmp_path, repository)
    before = snapshot(repository)
    await host.backend.provision(host.spec)
    (host.checkout / "new.txt").write_text("new\n")
    (host.checkout / "x.ignored").write_text("left out\n")
    saved = await host.backend.save_result(host.spec.compute, host.spec.base_commit)
    await host.backend.destroy(host.spec.compute)

    assert saved is not None
    assert saved.bundle is None
    assert saved.result.branch == host.branch
    assert saved.result.base_commit == host.spec.base_commit
    assert saved.result.repository_path == str(repository)
    assert not saved.result.bundle
    assert (saved.result.files_changed, saved.result.insertions, saved.result.deletions) == (1, 1, 0)
    assert git(repository, "rev-parse", host.branch) == saved.result.commit
    assert sorted(files_of(repository, host.branch)) == [".gitignore", "README", "new.txt", "src/app.py"]
    after = snapshot(repository)
    added = {path for path in after if path not in before}
    assert {path for path in before if before[path] != after.get(path)} == set()
    prefix = "" if head == "bare" else ".git/"
    assert {path for path in added if not path.startswith((f"{prefix}refs/heads/taskrunner", f"{prefix}logs"))} == set()


async def test_no_change_leaves_no_branch(host: Host) -> None:
    """S44"""
    before = snapshot(host.repository)
    await host.backend.provision(host.spec)
    assert host.branch in host.branches()
    (host.checkout / "x.ignored").write_text("left out\n")
    assert await host.backend.save_result(host.spec.compute, host.spec.base_commit) is None
    await host.backend.destroy(host.spec.compute)
    assert snapshot(host.repository) == before


async def test_a_saved_result_is_saved_once_even_if_the_release_runs_again(host: Host) -> None:
    await host.backend.provision(host.spec)
    (host.checkout / "new.txt").write_text("new\n")
    first = await host.backend.save_result(host.spec.compute, host.spec.base_commit)
    assert await host.backend.save_result(host.spec.compute, host.spec.base_commit) == first
    await host.backend.destroy(host.spec.compute)
    assert await host.backend.save_result(host.spec.compute, host.spec.base_commit) is None
    assert host.branch in host.branches()


async def test_an_agent_that_removes_its_whole_workspace_loses_no_commit_and_leaves_no_entry(host: Host) -> None:
    """S44"""
    await host.backend.provision(host.spec)
    (host.checkout / "new").write_text("kept\n")
    git(host.checkout, "add", "new")
    git(host.checkout, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "mine")
    shutil.rmtree(host.folder)
    assert [compute.name for compute in await host.backend.list_owned()] == [host.spec.compute.name]
    saved = await host.backend.save_result(host.spec.compute, None)
    await host.backend.destroy(host.spec.compute)
    assert saved is not None
    assert git(host.repository, "log", "-1", "--format=%s", host.branch) == "mine"
    assert host.spec.compute.name not in git(host.repository, "worktree", "list")
    assert not host.folder.exists()
    assert await host.backend.list_owned() == []


async def test_the_result_of_an_earlier_workspace_of_the_task_stays(host: Host) -> None:
    git(host.repository, "branch", host.branch, "main")
    await host.backend.provision(host.spec)
    (host.checkout / "new.txt").write_text("new\n")
    saved = await host.backend.save_result(host.spec.compute, host.spec.base_commit)
    await host.backend.destroy(host.spec.compute)
    assert saved is not None
    assert saved.result.branch == f"{host.branch}-2"
    assert git(host.repository, "rev-parse", host.branch) == git(host.repository, "rev-parse", "main")


@pytest.mark.parametrize("harm", ["locked", "pruned", "no-git-file", "own-repository", "no-head", "deleted", "moved"])
async def test_whatever_the_agent_did_to_its_worktree_work_is_kept_and_nothing_else_stays(
    host: Host, harm: str
) -> None:
    """S44"""
    before = snapshot(host.repository)
    await host.backend.provision(host.spec)
    checkout = host.checkout
    admin = host.repository / ".git/worktrees" / host.spec.compute.name
    (checkout / "committed.txt").write_text("committed\n")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "-m", "by the agent")
    (checkout / "loose.txt").write_text("loose\n")
    expected = {"committed.txt", "loose.txt"}
    match harm:
        case "locked":
            git(host.repository, "worktree", "lock", str(checkout))
        case "pruned":
            shutil.rmtree(admin)
        case "no-git-file":
            (checkout / ".git").unlink()
        case "own-repository":
            (checkout / ".git").unlink()
            git(checkout, "init", "--quiet")
        case "no-head":
            (admin / "HEAD").unlink()
        case "deleted":
            shutil.rmtree(checkout)
            expected = {"committed.txt"}
        case "moved":
            git(host.repository, "worktree", "move", str(checkout), str(host.folder / "elsewhere"))
            expected = {"committed.txt"}
    saved = await host.backend.save_result(host.spec.compute, host.spec.base_commit)
    assert saved is not None
    assert expected <= set(files_of(host.repository, host.branch))
    await host.backend.destroy(host.spec.compute)
    assert not host.folder.exists()
    after = {path: value for path, value in snapshot(host.repository).items() if "heads/taskrunner" not in path}
    assert after == before


async def test_destroyed_without_saving_the_agents_commits_stay_on_the_branch(host: Host) -> None:
    await host.backend.provision(host.spec)
    (host.checkout / "new.txt").write_text("new\n")
    git(host.checkout, "add", "--all")
    git(host.checkout, "commit", "--quiet", "-m", "by the agent")
    await host.backend.destroy(host.spec.compute)
    assert "new.txt" in files_of(host.repository, host.branch)


async def test_the_users_other_worktrees_stay_even_where_their_folders_are_gone(host: Host, tmp_path: Path) -> None:
    git(host.repository, "worktree", "add", "--quiet", str(tmp_path / "mine"), "other")
    shutil.rmtree(tmp_path / "mine")
    before = snapshot(host.repository)
    await host.backend.provision(host.spec)
    await host.backend.destroy(host.spec.compute)
    assert snapshot(host.repository) == before


async def test_a_repository_that_is_gone_keeps_the_workspace_and_can_still_be_destroyed(
    host: Host, tmp_path: Path
) -> None:
    await host.backend.provision(host.spec)
    (host.checkout / "new.txt").write_text("new\n")
    host.repository.rename(tmp_path / "moved")
    with pytest.raises(ResultNotSaved, match=str(host.checkout)):
        await host.backend.save_result(host.spec.compute, host.spec.base_commit)
    assert (host.checkout / "new.txt").exists()
    await host.backend.destroy(host.spec.compute)
    assert not host.folder.exists()


async def test_many_workspaces_of_one_repository_at_once(host: Host) -> None:
    before = snapshot(host.repository)
    specs = [host.make_spec() for _ in range(6)]
    await asyncio.gather(*[host.backend.provision(spec) for spec in specs])
    for spec in specs:
        (host.home / "workspaces" / spec.compute.name / "checkout/new.txt").write_text(spec.compute.task_id)
    saved = await asyncio.gather(*[host.backend.save_result(spec.compute, spec.base_commit) for spec in specs])
    await asyncio.gather(*[host.backend.destroy(spec.compute) for spec in specs])
    for spec, each in zip(specs, saved, strict=True):
        assert each is not None
        assert files_of(host.repository, each.result.branch)["new.txt"] == spec.compute.task_id
    after = {path: value for path, value in snapshot(host.repository).items() if "heads/taskrunner" not in path}
    assert after == before


def git_that(folder: Path, around_add: str) -> dict[str, str]:
    """Return an environment whose git does more where it adds a worktree; ``$@`` is the real command."""
    folder.mkdir()
    real = shutil.which("git")
    script = f'#!/bin/sh\nset -- {real} "$@"\ncase "$*" in *" worktree add "*) {around_add};; *) exec "$@";; esac\n'
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


async def test_worktrees_of_one_repository_are_added_one_after_the_other(host: Host, tmp_path: Path) -> None:
    """Git dies where it finds a worktree that is half added."""
    busy, met = tmp_path / "busy", tmp_path / "met"
    environ = git_that(tmp_path / "bin", f'mkdir {busy} || touch {met}; sleep 0.1; "$@"; rmdir {busy}')
    host.backend = WorktreeBackend(host.home, environ=environ, stop_grace_seconds=0.5)
    another = WorktreeBackend(host.home, environ=environ, stop_grace_seconds=0.5)  # as in a second worker
    backends = (host.backend, another, host.backend)
    specs = [host.make_spec() for _ in backends]
    await asyncio.gather(*[backend.provision(spec) for backend, spec in zip(backends, specs, strict=True)])
    assert not met.exists()
    assert not any((host.home / "repositories").iterdir())


@pytest.mark.parametrize("lasts", [False, True])
async def test_a_worktree_that_somebody_else_adds_right_then_only_delays(
    host: Host, tmp_path: Path, lasts: bool
) -> None:
    """S23"""
    entry = host.repository / ".git/worktrees/another"
    half = f"mkdir -p {entry}; echo {tmp_path}/x/.git >{entry}/gitdir; echo ref: refs/heads/x >{entry}/HEAD"
    first_time = "true" if lasts else f"mkdir {tmp_path}/once 2>/dev/null"
    environ = git_that(
        tmp_path / "bin",
        f'if {first_time}; then {half}; : >{entry}/commondir; "$@"; code=$?; rm -r {entry}; exit $code; fi; exec "$@"',
    )
    host.backend = WorktreeBackend(host.home, environ=environ, stop_grace_seconds=0.5)
    before = snapshot(host.repository)
    if lasts:
        with pytest.raises(ProvisionFailed, match="commondir"):
            await host.backend.provision(host.spec)
        assert not host.folder.exists()
        assert snapshot(host.repository) == before
        return
    await host.backend.provision(host.spec)
    assert (host.checkout / "README").read_text() == "hello\n"
    assert git(host.checkout, "symbolic-ref", "HEAD") == f"refs/heads/{host.branch}"
    assert not entry.exists()


async def test_a_commit_that_is_gone_fails_with_gits_words_and_leaves_nothing(host: Host) -> None:
    """S23"""
    before = snapshot(host.repository)
    spec = make_spec(host.spec.task, "0" * 39 + "1")
    with pytest.raises(ProvisionFailed, match="worktree"):
        await host.backend.provision(spec)
    assert not host.folder.exists()
    assert snapshot(host.repository) == before


async def test_preflight_refuses_what_cannot_work(host: Host) -> None:
    task = make_task(BackendKind.WORKTREE)
    with pytest.raises(InvalidTask, match="repository"):
        await host.backend.check(task)
    by_url = task.model_copy(update={"repository": Repository(url=f"file://{host.home}/none")})
    with pytest.raises(InvalidTask, match="no git repository at"):
        await host.backend.check(by_url)
    git(host.repository, "branch", "taskrunner")
    with pytest.raises(InvalidTask, match="branch -m taskrunner"):
        await host.backend.check(host.spec.task)


async def test_hooks_of_the_repository_do_not_run(host: Host, tmp_path: Path) -> None:
    for name in ("post-checkout", "reference-transaction"):
        hook = host.repository / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        hook.chmod(0o755)
    await host.backend.provision(host.spec)
    assert not (tmp_path / "ran").exists()
