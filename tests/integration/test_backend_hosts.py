"""Backends ``local`` and ``worktree``: what both promise, with real agents, processes and repositories."""

import asyncio
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from activities import processes
from activities.agent_client import AgentClient
from activities.backends.contract import Compute, WorkspaceSpec
from activities.backends.host import HostBackend
from activities.errors import AttemptNotWanted, ProvisionFailed
from messages.activities import WorkspaceHandle
from messages.statuses import BackendKind, FailureSource
from messages.templates import Template
from tests.support.agent_process import TOKEN
from tests.support.audit import audit_of_this_thread
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import git, snapshot
from tests.support.host_backends import SECRET
from tests.support.hosts import BACKENDS, agents_of, make_spec, make_task, marked_processes, yes

pytest_plugins = ["tests.support.host_backends"]


@pytest.fixture(scope="module")
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
def spec(kind: BackendKind, repository: Path, api: CallbackApi) -> WorkspaceSpec:
    task = make_task(kind, repository)
    return make_spec(task, git(repository, "rev-parse", "HEAD"), api_url=api.url)


def folder_of(home: Path, compute: Compute) -> Path:
    return home / "workspaces" / compute.name


def read_proc(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()


async def is_ready(handle: WorkspaceHandle) -> bool:
    async with httpx.AsyncClient() as client:
        return (await AgentClient(client, handle.harness_url, TOKEN).health()).status == "ok"


async def test_the_first_request_to_a_provisioned_workspace_is_answered_ready(
    backend: HostBackend, spec: WorkspaceSpec, home: Path
) -> None:
    """S13: no wait, nothing refused while the agent still starts."""
    handle = await backend.provision(spec)
    assert await is_ready(handle)
    assert handle.name == spec.compute.name
    checkout = folder_of(home, spec.compute) / "checkout"
    assert (checkout / "README").read_text() == "hello\n"  # the commit, not the user's half-done work
    assert not (checkout / "notes.txt").exists()
    found = await backend.inspect(spec.compute)
    assert (found.exists, found.alive) == (True, True)
    assert await backend.list_owned() == [spec.compute]


async def test_secrets_are_in_no_argv_environment_or_log(backend: HostBackend, spec: WorkspaceSpec, home: Path) -> None:
    """S37"""
    handle = await backend.provision(spec)
    assert await is_ready(handle)
    [pid] = agents_of(spec.compute)
    for file in ("cmdline", "environ"):
        content = read_proc(pid, file)
        assert spec.callback_token.encode() not in content
        assert SECRET.encode() not in content
        assert b"WORKER_SECRET" not in content
    folder = folder_of(home, spec.compute)
    holding = [
        path.name for path in folder.rglob("*")
        if path.is_file() and spec.callback_token.encode() in path.read_bytes()
    ]  # fmt: skip
    assert "agent.log" not in holding
    assert "compute.json" not in holding
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o077 == 0
    assert spec.callback_token not in repr(spec)


async def test_provisioning_again_adopts_what_is_there(backend: HostBackend, spec: WorkspaceSpec) -> None:
    """S20"""
    first = await backend.provision(spec)
    again = await backend.provision(spec)
    assert again == first
    assert len(agents_of(spec.compute)) == 1


async def test_provisioning_at_once_makes_one_process(
    backend: HostBackend, spec: WorkspaceSpec, kind: BackendKind, home: Path
) -> None:
    """S43: a cut-off worker and its successor, each with a backend of its own."""
    successor = BACKENDS[kind](home, environ=os.environ)
    handles = await asyncio.gather(*[each.provision(spec) for each in (backend, successor, backend, successor)])
    assert len(set(map(str, handles))) == 1
    assert len(agents_of(spec.compute)) == 1


_CRASH = """
import asyncio, os, pickle, signal, sys
from pathlib import Path
from activities import processes
from activities.backends import host
from tests.support.host_backends import SECRET
from tests.support.hosts import yes, BACKENDS

where, home, spec = sys.argv[1], Path(sys.argv[2]), pickle.load(sys.stdin.buffer)

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function):
    async def crash(*args, **kwargs):
        await function(*args, **kwargs)
        die()
    return crash

backend_class = BACKENDS[spec.template.backend]
if where == "before-anything-is-made":
    backend_class._prepare = die
elif where == "checkout-made":
    backend_class._prepare = after(backend_class._prepare)
elif where == "process-started":
    backend_class._started = die
elif where == "provisioned":
    backend_class.provision = after(backend_class.provision)
asyncio.run(backend_class(home, environ=os.environ).provision(spec))
"""


@pytest.mark.parametrize("where", ["before-anything-is-made", "checkout-made", "process-started", "provisioned"])
async def test_killed_anywhere_while_provisioning_the_next_call_ends_with_one_process(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, where: str
) -> None:
    """S21, S22: what a worker's kill -9 left is adopted or finished; an agent that serves outlives its worker."""
    crashed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(_CRASH), where, str(home)],
        input=pickle.dumps(spec),
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert crashed.returncode == -signal.SIGKILL
    before = agents_of(spec.compute)
    record = json.loads((folder_of(home, spec.compute) / "compute.json").read_text())
    assert bool(record["process"]) == (where == "provisioned")

    handle = await backend.provision(spec)
    assert await is_ready(handle)
    after = agents_of(spec.compute)
    assert len(after) == 1
    if where == "provisioned":
        assert after == before  # adopted, not replaced
    else:  # nobody knew of it
        assert after != before
    process = await backend.process_to_watch(spec.compute)
    assert process is not None
    assert process.pid == after[0]


async def test_the_agent_loads_while_the_checkout_is_made_and_serves_no_sooner(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    prepare = backend._prepare

    async def watched(*args: Any) -> Any:
        record = await prepare(*args)
        seen.append((len(agents_of(spec.compute)), (folder_of(home, spec.compute) / "state/agent.lock").exists()))
        return record

    monkeypatch.setattr(backend, "_prepare", watched)
    assert await is_ready(await backend.provision(spec))
    prepares_itself = spec.template.backend is BackendKind.LOCAL  # and locks the state for that, in another process
    assert seen == [(1, prepares_itself)]


async def test_an_agent_that_waits_ends_with_a_provision_that_fails(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Any:
        raise ProvisionFailed("there is no room", source=FailureSource.PROVIDER)

    monkeypatch.setattr(backend, "_prepare", fail)
    with pytest.raises(ProvisionFailed, match="no room"):
        await backend.provision(spec)
    assert agents_of(spec.compute) == []
    assert not folder_of(home, spec.compute).exists()


async def test_a_lost_compute_file_still_finds_the_process_by_its_marker(
    backend: HostBackend, spec: WorkspaceSpec, home: Path
) -> None:
    """S22"""
    first = await backend.provision(spec)
    (folder_of(home, spec.compute) / "compute.json").unlink()
    assert await backend.provision(spec) == first
    assert len(agents_of(spec.compute)) == 1
    (folder_of(home, spec.compute) / "checkout/work.txt").write_text("kept")
    assert await backend.save_result(spec.compute, spec.base_commit) is not None
    await backend.destroy(spec.compute)
    assert agents_of(spec.compute) == []


async def test_an_agent_that_died_is_started_again_on_the_same_checkout(
    backend: HostBackend, spec: WorkspaceSpec, home: Path
) -> None:
    await backend.provision(spec)
    (folder_of(home, spec.compute) / "checkout/work.txt").write_text("kept")
    process = await backend.process_to_watch(spec.compute)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert await processes.wait_for_exit(process, 10)
    found = await backend.inspect(spec.compute)
    assert (found.exists, found.alive, found.exit_code) == (True, False, -9)
    assert found.ending == "its agent was killed by signal 9"

    handle = await backend.provision(spec)
    assert await is_ready(handle)
    assert (folder_of(home, spec.compute) / "checkout/work.txt").read_text() == "kept"


async def test_destroy_leaves_nothing_and_is_fine_twice(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path
) -> None:
    before = snapshot(repository)
    await backend.provision(spec)
    folder = folder_of(home, spec.compute)
    readonly = folder / "checkout/readonly/deep"
    readonly.mkdir(parents=True)
    (readonly / "file").write_text("x")
    readonly.chmod(0o555)
    readonly.parent.chmod(0o000)
    outside = home.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "checkout/link").symlink_to(outside)
    await backend.destroy(spec.compute)
    assert not folder.exists()
    assert (outside / "kept").exists()
    assert spec.compute.name not in marked_processes().values()
    assert snapshot(repository) == before
    assert await backend.list_owned() == []
    await backend.destroy(spec.compute)
    found = await backend.inspect(spec.compute)
    assert (found.exists, found.alive) == (False, False)


async def test_a_release_removes_and_syncs_beside_the_event_loop(
    kind: BackendKind, backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path
) -> None:
    """All other tasks of the host, and in the embedded stack the API, would wait for a slow disk."""
    await backend.provision(spec)
    checkout = folder_of(home, spec.compute) / "checkout"
    (checkout / "new.txt").write_text("new\n")
    shutil.rmtree(checkout / ".git" if kind is BackendKind.LOCAL else repository / ".git/worktrees" / spec.compute.name)
    with audit_of_this_thread() as heard:
        assert [owned.name for owned in await backend.list_owned()] == [spec.compute.name]
        assert "open" not in {event for event, _ in heard}
        assert await backend.save_result(spec.compute, spec.base_commit)
        await backend.destroy(spec.compute)
    assert [args for event, args in heard if event == "shutil.rmtree"] == []
    assert [args for event, args in heard if event == "open" and args[2] & os.O_DIRECTORY] == []  # to sync it


async def test_destroying_what_never_was_makes_nothing(backend: HostBackend, spec: WorkspaceSpec, home: Path) -> None:
    await backend.destroy(spec.compute)
    assert not (home / "workspaces").exists()
    assert await backend.save_result(spec.compute, None) is None


@pytest.mark.parametrize("workspace_id", ["../x", "/x", "", "A", "a" * 41, "a/b", "a\n", "."])
def test_an_id_that_is_none_is_refused_before_anything_is_made(workspace_id: str, tmp_path: Path) -> None:
    """S13"""
    with pytest.raises(ValueError, match="is no id"):
        Compute(workspace_id=workspace_id, attempt=1, task_id="t")
    with pytest.raises(ValueError, match="is no id"):
        Compute(workspace_id="w", attempt=1, task_id=workspace_id or "../x")
    assert list(tmp_path.iterdir()) == []


async def test_cancelled_at_any_moment_provision_leaves_nothing(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path
) -> None:
    """S43: the same compute is brought up while the moment of its cancellation moves on."""
    before = snapshot(repository)
    moment, cancelled = 0.0, 0
    while True:
        provisioning = asyncio.create_task(backend.provision(spec))
        done, _ = await asyncio.wait([provisioning], timeout=moment)
        if done:
            break
        provisioning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await provisioning
        cancelled += 1
        assert not folder_of(home, spec.compute).exists(), f"cancelled after {moment} s"
        assert agents_of(spec.compute) == []
        assert snapshot(repository) == before
        moment += 0.004
    assert cancelled > 2
    assert await is_ready(provisioning.result())


async def test_a_cancelled_wait_for_the_lock_lets_it_go(
    backend: HostBackend, spec: WorkspaceSpec, kind: BackendKind, home: Path
) -> None:
    first = asyncio.create_task(backend.provision(spec))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(backend.provision(spec)) for _ in range(40)]  # more than the pool has threads
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await first
    async with asyncio.timeout(20):
        await backend.destroy(spec.compute)


async def test_a_failed_start_leaves_nothing_and_the_same_name_works_again(
    backend: HostBackend, spec: WorkspaceSpec, home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S23"""
    before = snapshot(repository)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises((ProvisionFailed, FileNotFoundError)):
        await backend.provision(spec)
    assert not folder_of(home, spec.compute).exists()
    assert snapshot(repository) == before
    monkeypatch.undo()
    assert await is_ready(await backend.provision(spec))


async def test_a_compute_that_is_being_taken_down_is_not_brought_back(
    backend: HostBackend, spec: WorkspaceSpec, home: Path
) -> None:
    await backend.provision(spec)
    (folder_of(home, spec.compute) / "checkout/work.txt").write_text("kept")
    assert await backend.save_result(spec.compute, spec.base_commit) is not None
    with pytest.raises(AttemptNotWanted):
        await backend.provision(spec)
    assert (folder_of(home, spec.compute) / "checkout/work.txt").exists()
    assert await backend.process_to_watch(spec.compute) is None


async def test_sessions_and_their_daemons_end_with_the_workspace(
    backend: HostBackend, spec: WorkspaceSpec, tmp_path: Path
) -> None:
    handle = await backend.provision(spec)
    os.mkfifo(tmp_path / "pids")
    script = f"setsid sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pids; sleep 1000' >/dev/null 2>&1 & wait"
    async with httpx.AsyncClient() as client:
        await AgentClient(client, handle.harness_url, TOKEN).create_session("s-1", ["sh", "-c", script], {})
    daemon = processes.identify(int(await asyncio.to_thread((tmp_path / "pids").read_text)))
    assert daemon is not None
    await backend.destroy(spec.compute)
    assert not processes.is_alive(daemon)


async def test_template_env_setup_and_heartbeat_reach_the_agent(
    kind: BackendKind, backend: HostBackend, repository: Path, api: CallbackApi, home: Path
) -> None:
    task = make_task(kind, repository, env={"LEVEL": "info"}, setup=("echo $LEVEL > made-by-setup",))
    assert Template.model_validate(task.template).effective_readiness == "callback"
    spec = make_spec(task, git(repository, "rev-parse", "HEAD"), api_url=api.url)
    handle = await backend.provision(spec)
    async with httpx.AsyncClient() as client:
        await AgentClient(client, handle.harness_url, TOKEN).wait_until_booted(20, worth_waiting=yes)
    assert (folder_of(home, spec.compute) / "checkout/made-by-setup").read_text() == "info\n"
    api.wait_for(lambda: any(c.kind == "ready" and c.workspace_id == task.workspace_id for c in api.accepted))


async def test_attempts_of_one_workspace_are_different_computes(backend: HostBackend, spec: WorkspaceSpec) -> None:
    second = replace(spec, compute=replace(spec.compute, attempt=2))
    first_handle, second_handle = await backend.provision(spec), await backend.provision(second)
    assert first_handle.harness_url != second_handle.harness_url
    await backend.destroy(spec.compute)
    assert await is_ready(second_handle)
