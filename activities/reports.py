"""What an activity reports of a workspace while it provisions it."""

import asyncio
import logging
from datetime import UTC, datetime

from messages.callbacks import BootLogBody
from messages.statuses import BootStatus
from store.errors import RegistryError
from store.workspaces import WorkspaceStore

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
"""How far a step is, is written at most once in so long."""


class ProvisioningReports:
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
        """Leave a line in the boot log."""
        entry = BootLogBody(step="checkout", status=BootStatus.COMPLETED, message=text, timestamp=datetime.now(UTC))
        try:
            await self._workspaces.append_boot_log(self._workspace_id, self._attempt, entry)
        except RegistryError as e:
            _log.warning("%s: cannot be told: %s", text, e)
