"""What a removal that stopped half-way leaves is no result: it is neither committed nor kept on a branch (S44, S21)."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from activities import scopes
from activities.backends import host
from activities.backends.contract import WorkspaceSpec
from activities.backends.host import HostBackend, _remove_folder  # pyright: ignore[reportPrivateUsage]
from activities.errors import NotRemoved, ProvisionFailed
from messages.names import result_branch
from messages.statuses import BackendKind, FailureSource
from tests.support.git_repositories import git, snapshot
from tests.support.hosts import agents_of, make_spec, make_task

pytest_plugins = ["tests.support.host_backends"]

ROOT = Path(__file__).parents[2]

KILLED_AFTER_THE_FIRST_FILES = """
import asyncio, json, os, signal, sys
from pathlib import Path
from activities.backends.contract import Compute
from messages.statuses import BackendKind
from tests.support.hosts import BACKENDS

given = json.loads(sys.argv[1])
unlink = os.unlink
def unlink_and_die(path, **how):
    unlink(path, **how)
    if path == "README":
        os.kill(os.getpid(), signal.SIGKILL)
os.unlink = unlink_and_die
backend = BACKENDS[BackendKind(given["kind"])](Path(given["home"]), environ=os.environ, stop_grace_seconds=5)
asyncio.run(backend.destroy(Compute(given["workspace_id"], 1, given["task_id"])))
"""


@pytest.fixture
def spec(backend: HostBackend, repository: Path) -> WorkspaceSpec:
    # Immediate: the checkout is there when provision returns.
    task = make_task(backend.kind, repository, readiness="immediate")
    return make_spec(task, git(repository, "rev-parse", "HEAD"))


def keep_the_checkouts_folder(patched: pytest.MonkeyPatch) -> None:
    """Let all in the checkout go but not the folder itself, as where something is mounted on it."""
    rmdir: Callable[..., None] = os.rmdir

    def refuse(path: str | Path, **how: int) -> None:
        if Path(path).name == "checkout":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        rmdir(path, **how)

    patched.setattr(os, "rmdir", refuse)


async def stop_half_way(how: str, backend: HostBackend, spec: WorkspaceSpec, home: Path) -> None:
    if how == "refused":
        with pytest.MonkeyPatch.context() as patched:
            keep_the_checkouts_folder(patched)
            with pytest.raises(NotRemoved, match="busy"):
                await backend.destroy(spec.compute)
        return
    compute = spec.compute
    given = {
        "kind": backend.kind,
        "home": str(home),
        "workspace_id": compute.workspace_id,
        "task_id": compute.task_id,
    }
    command = [sys.executable, "-c", KILLED_AFTER_THE_FIRST_FILES, json.dumps(given)]
    killed = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


@pytest.mark.parametrize("how", ["refused", "killed"])
@pytest.mark.parametrize("changed", [True, False], ids=["changed", "unchanged"])
async def test_a_release_that_runs_again_after_half_a_removal_keeps_the_result_as_it_was(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path, *, how: str, changed: bool
) -> None:
    """S44, S21: what is gone by our own hand is no change of the agent's."""
    before = snapshot(repository)
    branch = result_branch(spec.compute.task_id)
    await backend.provision(spec)
    checkout = home / "workspaces" / spec.compute.name / "checkout"
    if changed:
        (checkout / "new").write_text("kept\n")
    first = await backend.save_result(spec.compute, None)
    assert (first is not None) is changed

    for _ in range(2):
        await stop_half_way(how, backend, spec, home)
        assert checkout.exists()
        assert not (checkout / "README").exists()
        assert await backend.save_result(spec.compute, None) is None
        assert await backend.list_owned() == [spec.compute]
        (checkout / "README").write_text("for the next time\n")
    await backend.destroy(spec.compute)

    assert not checkout.parent.exists()
    assert await backend.list_owned() == []
    if first is not None and backend.kind is BackendKind.WORKTREE:
        assert git(repository, "rev-parse", branch) == first.result.commit
        assert git(repository, "show", f"{branch}:README") == "hello"
    else:
        assert snapshot(repository) == before


@pytest.mark.parametrize("then", ["released", "provisioned"])
async def test_half_the_removal_of_a_failed_provision_is_no_result_and_is_finished_by_the_next_call(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path, then: str
) -> None:
    """S23, S43"""
    before = snapshot(repository)
    folder = home / "workspaces" / spec.compute.name

    async def fail(*_: object, **__: object) -> None:
        raise ProvisionFailed("no more memory", source=FailureSource.PROVIDER)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scopes, "move_to_scope", fail)
        keep_the_checkouts_folder(patched)
        with pytest.raises(NotRemoved):
            await backend.provision(spec)
    assert (folder / "checkout").exists()
    assert not (folder / "checkout/README").exists()
    if then == "provisioned":
        await backend.provision(spec)
        assert len(agents_of(spec.compute)) == 1
        assert (folder / "checkout/README").read_text() == "hello\n"
    assert await backend.save_result(spec.compute, None) is None
    await backend.destroy(spec.compute)
    assert not folder.exists()
    assert snapshot(repository) == before


async def test_a_cancelled_removal_keeps_its_workspace_locked_until_nothing_removes_any_more(
    backend: HostBackend, spec: WorkspaceSpec, home: Path
) -> None:
    """S43: a thread cannot be stopped, so the next call for the same compute waits for it."""
    await backend.provision(spec)
    loop = asyncio.get_running_loop()
    removing, go_on, done = asyncio.Event(), threading.Event(), threading.Event()

    def remove(folder: Path) -> None:
        loop.call_soon_threadsafe(removing.set)
        go_on.wait(20)
        _remove_folder(folder)
        done.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(host, "_remove_folder", remove)
        destroying = asyncio.create_task(backend.destroy(spec.compute))
        async with asyncio.timeout(20):
            await removing.wait()
        destroying.cancel()
        _, unfinished = await asyncio.wait([destroying], timeout=0.1)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await destroying
    assert unfinished
    assert done.is_set()
    assert not (home / "workspaces" / spec.compute.name).exists()


@pytest.mark.parametrize("name", ["workspaces", "records"])
async def test_a_file_in_the_place_of_a_folder_of_ours_is_what_provisioning_fails_with(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, name: str
) -> None:
    """Not what cleaning up after it fails with: nothing of a workspace can be below a file."""
    home.mkdir()  # noqa: ASYNC240
    (home / name).touch()
    with pytest.raises(OSError) as failed:  # noqa: PT011 (which one is up to the system)
        await backend.provision(spec)
    assert failed.value.errno in {errno.ENOTDIR, errno.EEXIST}
    assert str(failed.value.filename).startswith(str(home / name))
    await backend.destroy(spec.compute)
    assert not (home / "workspaces" / spec.compute.name).exists()
    (home / name).unlink()


async def test_a_workspace_whose_end_cannot_be_noted_is_not_removed_and_is_found_again(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk: it counts as not removed, which is tried a few times, and not as an outage of hours."""
    await backend.provision(spec)

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(host, "write_private", full)
        with pytest.raises(NotRemoved, match=rf"cannot be noted: the disk of {home}.* is full; free some space"):
            await backend.destroy(spec.compute)
    await backend.destroy(spec.compute)
    assert not (home / "workspaces" / spec.compute.name).exists()
