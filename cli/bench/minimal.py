"""The floor: what one would write by hand with Temporal alone. Two activities, one signal, one timer, no extras."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import activity, workflow

PROVISION = "bench_provision"
CREATE_SESSION = "bench_create_session"

_LIMIT = timedelta(seconds=60)


@workflow.defn(name="BenchMinimal")
class Minimal:
    """Provision, wait for the ready signal or the timer, create the session."""

    def __init__(self) -> None:
        self._ready = False

    @workflow.signal
    def ready(self) -> None:
        """Note that the workspace is ready."""
        self._ready = True

    @workflow.query
    def is_ready(self) -> bool:
        """Tell whether the signal has come: what a poller asks."""
        return self._ready

    @workflow.run
    async def run(self, name: str) -> str:
        """Run to the end; return the name."""
        await workflow.execute_activity(PROVISION, name, start_to_close_timeout=_LIMIT)
        await workflow.wait_condition(lambda: self._ready, timeout=_LIMIT)
        await workflow.execute_activity(CREATE_SESSION, name, start_to_close_timeout=_LIMIT)
        return name


class MinimalActivities:
    """Activities that do nothing. ``provisioned`` hears the workflow's id when the first one is about to return."""

    def __init__(self, provisioned: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._provisioned = provisioned

    @activity.defn(name=PROVISION)
    async def provision(self, name: str) -> str:
        """Do nothing."""
        if self._provisioned:
            await self._provisioned(activity.info().workflow_id or "")
        return name

    @activity.defn(name=CREATE_SESSION)
    async def create_session(self, name: str) -> str:
        """Do nothing."""
        return name
