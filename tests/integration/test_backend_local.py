"""Backend ``local``: a repository of its own, whose change is kept as a git bundle."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from activities import git_results
from activities.agent_client import AgentClient
from activities.backends.contract import SavedChange, WorkspaceSpec
from activities.backends.local import LocalBackend
from activities.errors import InvalidTask, ProvisionFailed, ResultNotSaved
from messages.names import result_branch
from messages.statuses import BackendKind, FailureSource, Readiness
from tests.support.agent_process import TOKEN
from tests.support.git_repositories import files_of, git, snapshot
from tests.support.hosts import make_spec, make_task, yes

pytest_plugins = ["tests.support.host_backends"]


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(tmp_path / "home", environ=os.environ, stop_grace_seconds=0.5)
    yield backend
    for compute in await backend.list_owned():
        await backend.destroy(compute)


def spec_of(repository: Path | None = None, base: str | None = None, **template: object) -> WorkspaceSpec:
    if repository and base is None:
        base = git(repository, "rev-parse", "HEAD")
    return make_spec(make_task(BackendKind.LOCAL, repository, **template), base)


def checkout_of(tmp_path: Path, spec: WorkspaceSpec) -> Path:
    return tmp_path / "home/workspaces" / spec.compute.name / "checkout"


def bundle_of(tmp_path: Path, saved: SavedChange | None) -> Path:
    assert saved is not None
    assert saved.result.bundle
    assert saved.bundle is not None
    file = tmp_path / "result.bundle"
    file.write_bytes(saved.bundle)
    return file


async def test_an_empty_workspace_gives_a_bundle_that_can_be_cloned(backend: LocalBackend, tmp_path: Path) -> None:
    """S44"""
    spec = spec_of()
    assert await backend.check(spec.task) is None
    await backend.provision(spec)
    (checkout_of(tmp_path, spec) / "made.txt").write_text("made\n")
    saved = await backend.save_result(spec.compute, None)
    await backend.destroy(spec.compute)
    file = bundle_of(tmp_path, saved)
    assert saved is not None
    assert saved.result.branch == result_branch(spec.compute.task_id)
    git(tmp_path, "clone", "--quiet", "--branch", saved.result.branch, str(file), "fetched")
    assert files_of(tmp_path / "fetched", "HEAD") == {"made.txt": "made"}
    assert git(tmp_path / "fetched", "rev-parse", "HEAD^") == saved.result.base_commit
    assert (saved.result.files_changed, saved.result.insertions) == (1, 1)
    assert saved.patch is not None
    assert b"+made" in saved.patch


async def test_an_untouched_workspace_has_no_result(backend: LocalBackend, repository: Path) -> None:
    """S44"""
    before = snapshot(repository)
    for spec in (spec_of(), spec_of(repository)):
        await backend.provision(spec)
        assert await backend.save_result(spec.compute, spec.base_commit) is None
        await backend.destroy(spec.compute)
    assert snapshot(repository) == before


@pytest.mark.parametrize("head", ["main", "unpublished"])
async def test_a_clone_gives_a_bundle_that_its_origin_can_fetch(
    backend: LocalBackend, repository: Path, tmp_path: Path, head: str
) -> None:
    """S44"""
    if head == "unpublished":  # a commit that no branch holds
        git(repository, "stash")
        git(repository, "checkout", "--quiet", "--detach")
        git(repository, "commit", "--quiet", "--allow-empty", "-m", "unpublished")
    before = snapshot(repository)
    spec = spec_of(repository)
    assert await backend.check(spec.task) == spec.base_commit
    await backend.provision(spec)
    checkout = checkout_of(tmp_path, spec)
    assert git(checkout, "rev-parse", "HEAD") == spec.base_commit
    (checkout / "new.txt").write_text("new\n")
    saved = await backend.save_result(spec.compute, spec.base_commit)
    await backend.destroy(spec.compute)
    assert snapshot(repository) == before
    file = bundle_of(tmp_path, saved)
    assert saved is not None
    branch = saved.result.branch
    heads = [line.split()[1] for line in git(repository, "bundle", "list-heads", str(file)).splitlines()]
    assert heads == [f"refs/heads/{branch}"]  # what the origin has is not sent back
    git(repository, "fetch", "--quiet", str(file), f"{branch}:{branch}")
    assert git(repository, "rev-parse", f"{branch}^") == spec.base_commit
    assert "new.txt" in files_of(repository, branch)


@pytest.mark.parametrize("harm", ["no-git", "own-repository", "broken-git", "orphan"])
@pytest.mark.parametrize("origin", [True, False], ids=["clone", "empty"])
async def test_whatever_the_agent_did_to_its_repository_the_files_are_kept(
    backend: LocalBackend, repository: Path, tmp_path: Path, harm: str, origin: bool
) -> None:
    """S44"""
    spec = spec_of(repository if origin else None)
    await backend.provision(spec)
    checkout = checkout_of(tmp_path, spec)
    (checkout / "new.txt").write_text("new\n")
    match harm:
        case "orphan":
            git(checkout, "checkout", "--quiet", "--orphan", "fresh")
        case "broken-git":
            (checkout / ".git/HEAD").unlink()
        case _:
            shutil.rmtree(checkout / ".git")
    if harm == "own-repository":
        git(checkout, "init", "--quiet")
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", "-m", "all mine")
    saved = await backend.save_result(spec.compute, spec.base_commit)
    file = bundle_of(tmp_path, saved)
    assert saved is not None
    reader = repository
    if not origin:
        git(tmp_path, "init", "--quiet", "reader")
        reader = tmp_path / "reader"
    git(reader, "fetch", "--quiet", str(file), f"{saved.result.branch}:{saved.result.branch}")
    assert files_of(reader, saved.result.branch)["new.txt"] == "new"
    assert saved.result.files_changed == 1


async def test_a_deleted_checkout_has_no_result(backend: LocalBackend, tmp_path: Path) -> None:
    spec = spec_of()
    await backend.provision(spec)
    shutil.rmtree(checkout_of(tmp_path, spec))
    assert await backend.save_result(spec.compute, None) is None


async def test_a_bundle_that_is_too_large_keeps_the_workspace(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_results, "MAX_BUNDLE_BYTES", 1000)
    spec = spec_of()
    await backend.provision(spec)
    big = checkout_of(tmp_path, spec) / "big.bin"
    big.write_bytes(os.urandom(2000))
    with pytest.raises(ResultNotSaved, match="larger than"):
        await backend.save_result(spec.compute, None)
    assert big.exists()


async def test_with_readiness_callback_the_agent_makes_the_checkout(
    backend: LocalBackend, repository: Path, tmp_path: Path
) -> None:
    spec = spec_of(repository, readiness=Readiness.CALLBACK, setup=("test -f README", "echo x > by-setup"))
    handle = await backend.provision(spec)
    async with httpx.AsyncClient() as client:
        await AgentClient(client, handle.harness_url, TOKEN).wait_until_booted(20, worth_waiting=yes)
    assert (checkout_of(tmp_path, spec) / "by-setup").exists()
    saved = await backend.save_result(spec.compute, spec.base_commit)
    assert saved is not None
    assert saved.result.base_commit == spec.base_commit


async def test_a_checkout_that_cannot_be_made_fails_with_its_reason_and_leaves_nothing(
    backend: LocalBackend, repository: Path, tmp_path: Path
) -> None:
    """S23"""
    spec = spec_of(repository, base="0" * 39 + "1")
    with pytest.raises(ProvisionFailed, match="checkout") as failed:
        await backend.provision(spec)
    assert failed.value.source is FailureSource.BOOTSTRAP
    assert list((tmp_path / "home/workspaces").iterdir()) == []


async def test_a_ref_without_a_repository_is_refused(backend: LocalBackend) -> None:
    with pytest.raises(InvalidTask, match="repository"):
        await backend.check(make_task(BackendKind.LOCAL, ref="main"))
