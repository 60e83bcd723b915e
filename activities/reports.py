"""What an activity reports beside its result: how far it is, and why it is tried again."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import as_application_errors
from messages.callbacks import NOT_KEPT, BootLogBody
from messages.statuses import BootStatus
from store.errors import RegistryError
from store.tasks import TaskStore
from store.workspaces import WorkspaceStore

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
"""How far a step is, is written at most once in so long."""


@asynccontextmanager
async def retries_told(tasks: TaskStore, task_id: str) -> AsyncGenerator[None]:
    """Do as :func:`as_application_errors`, and record for who follows the task why its activity is tried again."""
    try:
        with as_application_errors():
            yield
    except ApplicationError as e:
        why = e.__cause__
        told = why is not None and not isinstance(why, RegistryError)  # where that one is away, nothing can be recorded
        # What the first try of a short step could not do at once is not tried again yet: it begins.
        if told and not e.non_retryable and not activity.info().is_local:
            try:
                await tasks.record_retry(task_id, e.message)
            except RegistryError as failed:  # not worth a failure of another kind
                _log.warning("%s: cannot be told: %s", e.message, failed)
        raise


class WorkspaceReports:
    """Reports on one attempt. None of them is worth a failure: what the registry does not take is left out."""

    def __init__(self, workspaces: WorkspaceStore, workspace_id: str, attempt: int) -> None:
        self._workspaces = workspaces
        self._workspace_id = workspace_id
        self._attempt = attempt
        self._told = ""
        self._next = 0.0

    async def tell(self, text: str) -> None:
        """Say in one sentence how far it is; what comes sooner than a second after the last is dropped."""
        now = asyncio.get_running_loop().time()
        if text == self._told or now < self._next:
            return
        self._told, self._next = text, now + INTERVAL_SECONDS
        try:
            await self._workspaces.record_progress(self._workspace_id, self._attempt, text)
        except RegistryError as e:
            _log.warning("%s: cannot be told: %s", text, e)

    async def warn(self, text: str) -> None:
        """Leave a line in the boot log about what the workspace lacks."""
        await self._note("checkout", text)

    async def lost(self, text: str) -> None:
        """Leave a line in the boot log about what is not kept of the workspace."""
        await self._note(NOT_KEPT, text)

    async def _note(self, step: str, text: str) -> None:
        entry = BootLogBody(step=step, status=BootStatus.COMPLETED, message=text, timestamp=datetime.now(UTC))
        try:
            await self._workspaces.append_boot_log(self._workspace_id, self._attempt, entry)
        except RegistryError as e:
            _log.warning("%s: cannot be told: %s", text, e)
