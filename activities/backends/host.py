"""What ``local`` and ``worktree`` share: a folder, and a workspace agent as a process of this host.

``<home>/workspaces/<compute name>/`` holds ``checkout/``, ``state/`` (the agent's), ``config.json`` (secret),
``compute.json`` (what we know of the compute), ``agent.log`` and ``lock`` (held by whoever provisions, saves or
destroys).
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from activities import processes, scopes
from activities.backends.contract import Backend, Compute, Inspection, Report, SavedChange, WorkspaceSpec, unheard
from activities.backends.zipapp import agent_zipapp
from activities.errors import ActivityFailure, AttemptNotWanted, NotRemoved, ProvisionFailed, ResultNotSaved
from activities.files import exclusive, open_up, read_log_tail, remove_tree, write_private
from activities.git import Git, GitError
from activities.git_results import Change, Place, make_bundle
from activities.git_submodules import left_in_submodules
from activities.mirrors import Mirror
from activities.processes import ProcessId
from activities.programs import require_program
from activities.pushes import push
from activities.remotes import Remote
from activities.threads import to_its_end, until_done
from messages.activities import WorkspaceHandle
from messages.base import Message
from messages.file_errors import NO_SPACE, trouble_with
from messages.names import COMPUTE_MARKER, result_branch
from messages.statuses import BackendKind, FailureSource, Readiness
from messages.tasks import Repository, SavedResult, TaskInput

_log = logging.getLogger(__name__)

_FILLED_BY = 'what fills them: setup: ["{}"]'

STOP_GRACE_SECONDS = 15.0
"""What an agent gets to stop its sessions and deliver what it has (it gives up delivering after 5 s)."""


class ComputeRecord(Message):
    """What ``compute.json`` says.

    ``prepared``: the checkout is whole. ``process``: the agent that was started last. ``ending``: we are taking the
    compute down, so its end is no loss. ``removing``: its files are going too, so there is no result in them any more.
    ``common_dir`` and ``branch`` are what ``worktree`` made in a repository. For a task with a repository by ``url``,
    ``repository`` is its mirror here, and ``saved`` the commit whose bundle was made, or that was pushed.
    """

    workspace_id: str
    attempt: int
    task_id: str
    backend: BackendKind
    repository: str | None = None
    url: str | None = None
    push: bool = False
    saved: str | None = None
    base_commit: str | None = None
    common_dir: str | None = None
    branch: str | None = None
    prepared: bool = False
    process: ProcessId | None = None
    ending: bool = False
    removing: bool = False

    @property
    def compute(self) -> Compute:
        """Whose record it is."""
        return Compute(workspace_id=self.workspace_id, attempt=self.attempt, task_id=self.task_id)


class HostBackend(Backend):
    """A backend whose workspaces are folders and processes of this host.

    ``environ`` is the worker's environment: only its harmless part is passed on. ``host_id`` is for errors.
    """

    def __init__(
        self,
        home: Path,
        *,
        environ: Mapping[str, str],
        host_id: str = "localhost",
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
    ) -> None:
        self._home = home.absolute()
        self._host_id = host_id
        self._environ = environ
        self._env = processes.clean_environment(environ)
        self._stop_grace_seconds = stop_grace_seconds
        self._zipapp: Path | None = None

    async def check(self, task: TaskInput) -> str | None:
        """See :meth:`Backend.check`."""
        await asyncio.to_thread(require_program, task, self._env, self._host_id)
        return await self._check_repository(task)

    @abstractmethod
    async def _check_repository(self, task: TaskInput) -> str | None:
        """Check what the checkout is made from; the rest is what :meth:`Backend.check` says."""

    @abstractmethod
    def _checkout_config(self, spec: WorkspaceSpec) -> dict[str, Any]:
        """Return what the agent itself is to do for its checkout."""

    @abstractmethod
    async def _prepare(self, spec: WorkspaceSpec, record: ComputeRecord, folder: Path, lock: int) -> ComputeRecord:
        """Make the checkout, unless the agent is to. What is made outside ``folder`` is recorded before it is made."""

    @abstractmethod
    async def _save(self, record: ComputeRecord, folder: Path, base: str | None, lost: Report) -> SavedChange | None:
        """Keep what changed, and say what cannot be kept; nothing runs in the workspace any more."""

    async def _say_what_is_lost(self, place: Place, base: str, change: Change | None, lost: Report) -> None:
        """Say what stays behind of a workspace whose change is kept. It is not worth a failure."""
        try:
            for text in await left_in_submodules(place, base=base, commit=change.commit if change else base):
                await lost(text)
        except (GitError, OSError) as e:
            _log.warning("what is in the submodules of %s cannot be told: %s", place.checkout, e)

    def _saved(
        self, record: ComputeRecord, branch: str, change: Change, bundle: bytes | None, **pushed: str | None
    ) -> SavedChange:
        result = SavedResult(
            **pushed,
            branch=branch,
            base_commit=change.base,
            commit=change.commit,
            files_changed=change.files_changed,
            insertions=change.insertions,
            deletions=change.deletions,
            repository_path=None if record.url else record.repository,
            bundle=bundle is not None,
        )
        return SavedChange(result=result, patch=change.patch, bundle=bundle)

    async def _check_url(self, url: str, ref: str | None) -> str:
        """Return the commit that a task on a repository by URL starts from."""
        return await Remote(url, self._environ).resolve(ref)

    def _mirror(self, url: str) -> Mirror:
        return Mirror(self._home, Remote(url, self._environ), self._git(self._home))

    async def _save_elsewhere(
        self, record: ComputeRecord, folder: Path, git: Git, change: Change, branch: str, *, alone: bool
    ) -> SavedChange:
        """Push the change, or make a bundle of it where it is not to be pushed, or cannot be.

        ``alone``: the repository has branches of other tasks, which do not belong into the bundle.
        """
        saved: SavedChange | None = None
        push_error = None
        if record.push and record.url and record.repository:
            remote = Remote(record.url, self._environ)
            objects = (await git.common_dir() / "objects", Path(record.repository, "objects"))
            try:
                name = result_branch(record.task_id)
                name = await push(remote, change.commit, name, objects=objects, scratch=folder)
                saved = self._saved(record, name, change, None, pushed_to=remote.public)
            except (ActivityFailure, GitError) as e:
                push_error = str(e)
                _log.warning("the result of task %s is kept as a bundle: %s", record.task_id, e)
        if saved is None:
            try:
                bundle = await make_bundle(git, branch=branch, base=record.base_commit or change.base, alone=alone)
            except ResultNotSaved as e:
                raise ResultNotSaved(f"{push_error}; {e}" if push_error else str(e)) from e
            saved = self._saved(record, branch, change, bundle, push_error=push_error)
        self._write(folder, record.model_copy(update={"ending": True, "saved": change.commit}))
        return saved

    async def _warn(self, spec: WorkspaceSpec, record: ComputeRecord) -> None:
        """Say what of the repository a checkout does not hold."""
        if not record.repository or not record.base_commit:
            return
        git = self._git(Path(record.repository))
        patterns = ("-e", r"^\[submodule", "-e", r"filter=lfs")
        found = await git.ask("grep", "-l", *patterns, record.base_commit, "--", ".gitmodules", ".gitattributes")
        files = [line.rpartition(":")[2] for line in (found or "").splitlines()]
        if ".gitmodules" in files:
            await spec.warn(
                f"submodules are left empty; {_FILLED_BY.format('git submodule update --init --recursive')}"
            )
        if ".gitattributes" in files and record.url:  # of a path, git-lfs finds the files beside the repository
            await spec.warn(f"files of Git LFS are left as pointers; {_FILLED_BY.format('git lfs pull')}")

    async def _recover(self, spec: WorkspaceSpec) -> ComputeRecord:
        """Return the record of a compute that is there and whose file is lost."""
        return self._new_record(spec)

    async def _forget(self, record: ComputeRecord, folder: Path) -> None:
        """Remove what was made outside ``folder``."""

    async def provision(self, spec: WorkspaceSpec) -> WorkspaceHandle:
        """See :meth:`Backend.provision`."""
        folder = self._folder(spec.compute)
        async with exclusive(folder / "lock", create=True) as lock:
            assert lock is not None
            record = self._read(folder)
            agent = await asyncio.to_thread(self._find_agent, spec.compute, folder, record)
            port = _port(folder)
            # One that is not in the record was started by a worker that died: nobody may have told it to go on.
            if agent and port and (record is None or (record.process == agent and not record.ending)):
                record = record or await self._recover(spec)
                self._write(folder, record.model_copy(update={"process": agent, "prepared": True}))
                return self._handle(spec, port)
            if record and record.ending and record.prepared:
                raise AttemptNotWanted(f"workspace {spec.compute.name} is being taken down")
            try:
                if agent:  # or its configuration is lost, so nobody could reach it
                    await self._end_processes(spec.compute, agent)
                port = await self._bring_up(spec, folder, lock, record)
            except BaseException:
                await until_done(asyncio.ensure_future(self._undo(spec, folder)))
                raise
            return self._handle(spec, port)

    async def inspect(self, compute: Compute) -> Inspection:
        """See :meth:`Backend.inspect`."""
        folder = self._folder(compute)
        record = self._read(folder)
        agent = await asyncio.to_thread(self._find_agent, compute, folder, record)
        return Inspection(
            exists=bool(agent) or folder.is_dir(),
            alive=agent is not None,
            exit_code=processes.exit_code(record.process) if record and record.process and not agent else None,
            log_tail=read_log_tail(folder / "agent.log"),
        )

    async def save_result(self, compute: Compute, base: str | None, lost: Report = unheard) -> SavedChange | None:
        """See :meth:`Backend.save_result`."""
        folder = self._folder(compute)
        async with exclusive(folder / "lock", create=self._read(folder) is not None) as lock:
            record = self._read(folder)
            if lock is None or record is None or record.removing:
                return None
            try:
                await self._stop(compute, folder, record)
            except NotRemoved as e:  # the destroy that follows has to deal with it; the change is saved all the same
                _log.warning("%s; saving its result nevertheless", e)
            return await self._save(record, folder, base, lost)

    async def destroy(self, compute: Compute) -> None:
        """See :meth:`Backend.destroy`."""
        folder = self._folder(compute)
        async with exclusive(folder / "lock", create=self._is_known(folder)) as lock:
            if lock is None:
                await self._end_processes(compute, None)
                return
            await self._take_down(compute, folder)

    async def list_owned(self) -> list[Compute]:
        """See :meth:`Backend.list_owned`."""
        return await asyncio.to_thread(self._list_owned)

    def _list_owned(self) -> list[Compute]:
        found = {path.stem for path in (*self._workspaces.glob("tr-*"), *self._records.glob("tr-*.json"))}
        records = [self._read(self._workspaces / name) for name in sorted(found)]
        return [record.compute for record in records if record and record.backend is self.kind]

    async def process_to_watch(self, compute: Compute) -> ProcessId | None:
        """Return the agent's process, dead or alive; None where none serves yet, or we are ending it ourselves."""
        folder = self._folder(compute)
        record = self._read(folder)
        if record is None or record.ending or record.process is None:
            return None
        return await asyncio.to_thread(self._find_agent, compute, folder, record) or record.process

    def agent_url(self, compute: Compute) -> str | None:
        """Return where the compute's agent listens; None where nothing is known of it."""
        port = _port(self._folder(compute))
        return f"http://127.0.0.1:{port}" if port else None

    async def agents(self) -> list[tuple[Compute, str]]:
        """Return every compute and where its agent listens."""
        found = [(compute, self.agent_url(compute)) for compute in await self.list_owned()]
        return [(compute, url) for compute, url in found if url]

    @property
    def _workspaces(self) -> Path:
        return self._home / "workspaces"

    @property
    def _records(self) -> Path:
        return self._home / "records"

    def _folder(self, compute: Compute) -> Path:
        return self._workspaces / compute.name

    def _spare(self, folder: Path) -> Path:
        """Return where the record's copy is, which an agent that removes all around it does not take along."""
        return self._records / f"{folder.name}.json"

    def _is_known(self, folder: Path) -> bool:
        return folder.is_dir() or self._spare(folder).exists()

    def _repository(self, repository: Repository) -> Path:
        """Return where the repository is on this host: its mirror, of one by URL."""
        if repository.url is not None:
            return self._mirror(repository.url).path
        assert repository.path is not None
        return Path(repository.path)

    def _git(self, cwd: Path, *keep_open: int) -> Git:
        return Git(cwd=cwd, env=self._env, keep_open=keep_open)

    def _new_record(self, spec: WorkspaceSpec) -> ComputeRecord:
        repository = spec.task.repository
        return ComputeRecord(
            workspace_id=spec.compute.workspace_id,
            attempt=spec.compute.attempt,
            task_id=spec.compute.task_id,
            backend=self.kind,
            repository=str(self._repository(repository)) if repository else None,
            url=repository.url if repository else None,
            push=spec.template.push,
            base_commit=spec.base_commit,
        )

    def _read(self, folder: Path) -> ComputeRecord | None:
        for path in (folder / "compute.json", self._spare(folder)):
            try:
                return ComputeRecord.model_validate_json(path.read_text())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (ValidationError, UnicodeDecodeError):
                _log.warning("%s is broken: treated as missing", path)
        return None

    def _write(self, folder: Path, record: ComputeRecord, *, durable: bool = False) -> None:
        self._records.mkdir(mode=0o700, exist_ok=True)
        for path in (self._spare(folder), folder / "compute.json"):
            write_private(path, record.model_dump_json(indent=2) + "\n", durable=durable)

    def _note(self, folder: Path, record: ComputeRecord, *, durable: bool = False) -> None:
        """Write how far its end is; on a full disk, which its removal relieves, only where there may be a result."""
        try:
            self._write(folder, record, durable=durable)
        except OSError as e:
            if record.prepared or e.errno not in NO_SPACE:
                raise
            _log.warning("removing %s without a note of it: %s", folder, trouble_with(folder, e))

    def _handle(self, spec: WorkspaceSpec, port: int) -> WorkspaceHandle:
        return spec.handle(self.kind, f"http://127.0.0.1:{port}")

    def _find_agent(self, compute: Compute, folder: Path, record: ComputeRecord | None) -> ProcessId | None:
        if record and record.process and processes.is_alive(record.process):
            return record.process
        config = str(folder / "config.json")
        for process in processes.find_marked(compute.name):
            argv = processes.command_line(process)
            if "serve" in argv and config in argv:
                return process
        return None

    async def _bring_up(self, spec: WorkspaceSpec, folder: Path, lock: int, record: ComputeRecord | None) -> int:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        waits, go = os.pipe()
        try:
            listener.bind(("127.0.0.1", 0))
            listener.listen(socket.SOMAXCONN)
            port: int = listener.getsockname()[1]
            if self._zipapp is None or not self._zipapp.exists():
                self._zipapp = await asyncio.to_thread(agent_zipapp, self._home)
            if record is None or not record.prepared:
                if record:
                    await self._clear(folder, record)
                record = self._new_record(spec)
                self._write(folder, record)
                if record.url and record.base_commit:
                    await self._mirror(record.url).provide(record.base_commit, spec.tell)
            write_private(folder / "config.json", json.dumps(self._config(spec, folder, port)))
            # It loads while the checkout is made, and ends where the pipe closes without a word.
            process = await to_its_end(self._start, spec, folder, listener.fileno(), waits)
            if not record.prepared:
                await self._warn(spec, record)
                record = (await self._prepare(spec, record, folder, lock)).model_copy(update={"prepared": True})
                self._write(folder, record)
            os.write(go, b"\n")
        finally:
            os.close(go)
            os.close(waits)
            listener.close()
        self._started(folder, record, process)
        await scopes.move_to_scope(spec.compute.name, process, env=self._env)
        return port

    def _config(self, spec: WorkspaceSpec, folder: Path, port: int) -> dict[str, Any]:
        return {
            "workspace_id": spec.compute.workspace_id,
            "attempt": spec.compute.attempt,
            "name": spec.compute.name,
            "api_url": spec.api_url,
            "callback_token": spec.callback_token,
            "agent_token_sha256": spec.agent_token_sha256,
            "workspace": str(folder / "checkout"),
            "state": str(folder / "state"),
            "checkout": self._checkout_config(spec),
            "setup": list(spec.template.setup),
            "env": dict(spec.template.env),
            "heartbeat_interval_seconds": spec.template.heartbeat_interval.total_seconds(),
            "listen": {"host": "127.0.0.1", "port": port},
            # Nobody waits for an immediate workspace: its ready callback would only lengthen the task's history.
            "announces_ready": spec.template.effective_readiness is not Readiness.IMMEDIATE,
            "harness": spec.harness_config,
        }

    def _agent_argv(self, command: str, folder: Path) -> list[str]:
        assert self._zipapp is not None
        # Without site, which looks through what is installed: the agent needs nothing but the standard library.
        return [sys.executable, "-I", "-S", str(self._zipapp), command, "--config", str(folder / "config.json")]

    def _agent_env(self, compute: Compute) -> dict[str, str]:
        return {**self._env, COMPUTE_MARKER: compute.name}

    def _start(self, spec: WorkspaceSpec, folder: Path, listener: int, go: int) -> ProcessId:
        argv = [*self._agent_argv("serve", folder), "--listen-fd", str(listener), "--go-fd", str(go)]
        env = {**spec.harness_env, **self._agent_env(spec.compute)}
        try:
            return processes.start(argv, cwd=folder, env=env, log=folder / "agent.log", pass_fds=[listener, go])
        except OSError as e:
            raise ProvisionFailed(f"the workspace agent cannot be started: {e}", source=FailureSource.PROVIDER) from e

    def _started(self, folder: Path, record: ComputeRecord, process: ProcessId) -> None:
        self._write(folder, record.model_copy(update={"process": process}))

    async def _stop(self, compute: Compute, folder: Path, record: ComputeRecord | None) -> None:
        if record and not record.ending:
            record = record.model_copy(update={"ending": True})
            try:
                self._write(folder, record)
            except OSError as e:  # on a full disk, say: not for hours, while somebody waits for it to be gone
                raise NotRemoved(
                    f"the end of workspace {compute.name} cannot be noted: {trouble_with(folder, e)}"
                ) from e
        await self._end_processes(compute, await asyncio.to_thread(self._find_agent, compute, folder, record))

    async def _end_processes(self, compute: Compute, agent: ProcessId | None) -> None:
        try:
            await processes.end_all(compute.name, main=agent, grace_seconds=self._stop_grace_seconds)
        except processes.ProcessesRemain as e:
            raise NotRemoved(f"processes of workspace {compute.name} do not end: {e}") from e

    async def _undo(self, spec: WorkspaceSpec, folder: Path) -> None:
        """Take down what a failed provision made, so that the next one may begin anew even if this stops half-way."""
        if record := self._read(folder):
            self._note(folder, record.model_copy(update={"prepared": False, "ending": True}))
        await self._take_down(spec.compute, folder)

    async def _clear(self, folder: Path, record: ComputeRecord) -> None:
        """Remove what an interrupted provision left, but for our own files."""
        await self._end_processes(record.compute, None)
        await self._forget(record, folder)
        await to_its_end(remove_tree, folder / "checkout")
        await to_its_end(remove_tree, folder / "state")

    async def _take_down(self, compute: Compute, folder: Path) -> None:
        record = self._read(folder)
        await self._stop(compute, folder, record)
        try:
            if record := self._read(folder):
                # From here on what is in the checkout is no result: a release that runs again must not save it.
                await to_its_end(self._note, folder, record.model_copy(update={"removing": True}), durable=True)
                await self._forget(record, folder)
            await to_its_end(_remove_folder, folder)
            with contextlib.suppress(NotADirectoryError):  # a file where the records have to be holds none
                self._spare(folder).unlink(missing_ok=True)
        except OSError as e:
            raise NotRemoved(f"workspace {compute.name} is not removed: {e}; remove it by hand: {folder}") from e


def _port(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "config.json").read_text())["listen"]["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_folder(folder: Path) -> None:
    """Remove a workspace's folder. What tells whose it is goes last, so that a half-removed one is found."""
    open_up(folder)
    last = [folder / "compute.json", folder / "lock"]
    for path in (*(entry for entry in folder.iterdir() if entry not in last), *last):
        remove_tree(path)
    with contextlib.suppress(OSError):  # without the lock it is nobody's: whoever waited may begin anew in it
        folder.rmdir()
