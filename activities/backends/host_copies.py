"""Checkouts of workspaces that are elsewhere, while they are on this host: on their way in, and on their way back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, ClassVar

from activities.backends.host import ComputeRecord
from activities.backends.local import LocalBackend
from activities.errors import ProvisionFailed
from activities.files import write_private
from activities.git import run_program
from messages.callbacks import log_tail
from messages.statuses import BackendKind, FailureSource

if TYPE_CHECKING:
    from pathlib import Path

    from activities.backends.contract import Kept, WorkspaceSpec
    from messages.tasks import TaskInput


class HostCopies(LocalBackend):
    """What ``local`` does to its checkouts, done to a copy in a folder that is removed afterwards."""

    kind: ClassVar[BackendKind] = BackendKind.CONTAINER

    async def check_source(self, task: TaskInput) -> str | None:
        """Return the commit that the task's checkout starts from, None where it begins empty."""
        return await self._check_repository(task)

    def record(self, spec: WorkspaceSpec) -> ComputeRecord:
        """Return what has to be remembered of a task's repository until its result is kept."""
        return self._new_record(spec).model_copy(update={"prepared": True})

    async def make(self, spec: WorkspaceSpec, agent: Path, folder: Path) -> Path:
        """Make the checkout in ``folder`` and return it. Raises ``ProvisionFailed``."""
        record = self.record(spec)
        if record.url and record.base_commit:
            await self._mirror(record.url).provide(record.base_commit, spec.tell)
        await self._warn(spec, record)
        config, checkout = folder / "config.json", folder / "checkout"
        what = {"workspace": str(checkout), "state": str(folder / "state"), "checkout": self._checkout_config(spec)}
        write_private(config, json.dumps(what))
        argv = [sys.executable, "-I", str(agent), "prepare", "--config", str(config)]
        finished = await run_program(argv, cwd=folder, env=self._env)
        if finished.returncode != 0:
            said = finished.stderr.decode("utf-8", "replace").strip()
            last = said.splitlines()[-1] if said else f"exit code {finished.returncode}"
            raise ProvisionFailed(
                f"the checkout cannot be made: {last}", source=FailureSource.BOOTSTRAP, detail=log_tail(said)
            )
        return checkout

    async def keep(self, record: ComputeRecord, folder: Path, base: str | None) -> Kept | None:
        """Keep what changed in ``folder / "checkout"``; see :meth:`Backend.save_result`."""
        return await self._save(record, folder, base)

    def _write(self, folder: Path, record: ComputeRecord, *, durable: bool = False) -> None:
        """Remember nothing: the copy goes, and what it is of has a record of its own."""
