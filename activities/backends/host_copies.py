"""Checkouts of workspaces that are elsewhere, while they are on this host: on their way in, and on their way back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar

from activities.backends.host import ComputeRecord
from activities.backends.local import LocalBackend
from activities.errors import ProvisionFailed
from activities.subprocesses import ThreadPrograms
from activities.threads import to_its_end, until_done
from agent.checkout import StepFailed, prepare_checkout
from agent.config import Checkout
from messages.statuses import BackendKind, FailureSource

if TYPE_CHECKING:
    from pathlib import Path

    from activities.backends.contract import Report, SavedChange, WorkspaceSpec
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

    async def make(self, spec: WorkspaceSpec, folder: Path) -> Path:
        """Make the checkout in ``folder`` and return it. Raises ``ProvisionFailed``."""
        record = self.record(spec)
        if record.url and record.base_commit:
            await self._mirror(record.url).provide(record.base_commit, spec.tell)
        await self._warn(spec, record)
        checkout = folder / "checkout"
        try:
            await self._prepare_here(Checkout(**self._checkout_config(spec)), checkout)
        except StepFailed as e:
            raise ProvisionFailed(f"the checkout cannot be made: {e}", source=FailureSource.BOOTSTRAP) from e
        return checkout

    async def _prepare_here(self, what: Checkout, folder: Path) -> None:
        """Do what a workspace agent does for its checkout, in this process; a cancellation ends the git that runs."""
        programs = ThreadPrograms()

        def run(argv: list[str], cwd: Path, env: dict[str, str]) -> str:
            env = {**self._env, **{name: value for name, value in env.items() if name.startswith("GIT_")}}
            finished = programs.run(argv, cwd, env)
            said = (finished.stdout or finished.stderr).decode("utf-8", "replace")
            if finished.returncode != 0:
                first = said.strip().partition("\n")[0] or f"exit code {finished.returncode}"
                raise StepFailed(f"git: {first}")
            return said

        preparing = asyncio.ensure_future(asyncio.to_thread(prepare_checkout, what, folder, run))
        try:
            await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await to_its_end(programs.stop)
            with contextlib.suppress(BaseException):
                await until_done(preparing)
            raise

    async def save(self, record: ComputeRecord, folder: Path, base: str | None, lost: Report) -> SavedChange | None:
        """Save what changed in ``folder / "checkout"``; see :meth:`Backend.save_result`."""
        return await self._save(record, folder, base, lost)

    def _write(self, folder: Path, record: ComputeRecord, *, durable: bool = False) -> None:
        """Remember nothing: the copy goes, and what it is of has a record of its own."""
