"""How often an activity has failed is known to its every next try (``activities/errors.py``), whatever was between."""

from collections.abc import Callable
from typing import Any

import pytest

from activities.errors import WorkspaceUnreachable, as_application_errors
from activities.heartbeat import failures_so_far, note
from messages import names
from messages.activities import WorkspaceHandle
from store.errors import RegistryUnavailable
from tests.workflows.conftest import Scene, finished, ready
from workers.worker import all_of, new_worker
from workflows.task_runner import TaskRunner

MakeScene = Callable[..., Scene]

COUNTED = WorkspaceUnreachable("no answer")
OUTAGE = RegistryUnavailable("away")


@pytest.mark.parametrize("noting", [False, True], ids=["at once", "with a note"])
async def test_failures_are_counted_over_tries_that_ended_otherwise(real_scene: MakeScene, noting: bool) -> None:
    """S47: an outage is no failure of the step, its try ends without a heartbeat, and the count outlives it.

    The note is a heartbeat of the same instant, so that the count is held back by the SDK's throttle.
    """
    s = real_scene()
    counts: list[int] = []
    ends: list[Exception | None] = [COUNTED, OUTAGE, COUNTED, OUTAGE, None]

    async def provisions(_: Any) -> WorkspaceHandle:
        end = ends[len(counts)]
        counts.append(failures_so_far())
        with as_application_errors():
            if end is COUNTED and noting:
                note("asking")
            if end:
                raise end
        return s.world.handle(s.task)

    s.world.hooks["provision_workspace"] = provisions
    async with new_worker(s.client, "h", s.queue, all_of(s.world), [TaskRunner]):
        handle = await s.start()
        await handle.signal(names.WORKSPACE_READY, ready(s.task))
        await handle.signal(names.SESSION_FINISHED, finished(s.task))
        await handle.result()
    assert counts == [0, 1, 1, 2, 2]
