"""Whether a workspace can be reached, and how it is: what the activities of a task ask of it from our side."""

import asyncio
import contextlib
from collections.abc import Mapping

import httpx

from activities.agent_client import AgentClient
from activities.backends.contract import Backends, Compute, Inspection
from activities.endings import SAYS_FAILED, Loss, gone, hopeless, never_ready
from activities.errors import BackendAway, ProvisionFailed, WorkspaceUnreachable
from activities.harness_client import HarnessClient
from activities.heartbeat import note
from activities.threads import no_longer_than
from messages.activities import LastLook, WorkspaceHandle
from messages.keys import Keyring
from messages.statuses import FailureSource
from messages.tasks import TaskInput
from messages.templates import HarnessAgent

FIRST_PROBE_PAUSE_SECONDS = 0.1
LONGEST_PROBE_PAUSE_SECONDS = 5.0
LAST_PROBE_SECONDS = 3.0
"""How long a look waits for the workspace's answer."""
VERIFY_SECONDS = 10.0


class Sight:
    """Looks at workspaces of this host's backends: at their compute, their agent, and the harness in them."""

    def __init__(self, backends: Backends, keys: Keyring, client: httpx.AsyncClient) -> None:
        self._backends = backends
        self._keys = keys
        self._client = client

    def agent(self, handle: WorkspaceHandle) -> AgentClient:
        """Return the client of the workspace's agent."""
        token = self._keys.agent_token(handle.workspace_id, handle.attempt)
        return AgentClient(self._client, handle.harness_url, token)

    async def inspect(self, handle: WorkspaceHandle) -> Inspection:
        """Return what its backend knows of it."""
        compute = Compute(workspace_id=handle.workspace_id, attempt=handle.attempt)
        return await self._backends.of(handle.backend).inspect(compute)

    def harness(self, handle: WorkspaceHandle, task: TaskInput, env: Mapping[str, str]) -> HarnessClient:
        """Return the client of the harness in it; ``env`` holds the token of one that our agent is not before."""
        if handle.agent:
            token = self._keys.agent_token(handle.workspace_id, handle.attempt)
        else:
            agent = task.template.agent
            token = env.get(agent.token_env or "", "") if isinstance(agent, HarnessAgent) else ""
        return HarnessClient(self._client, handle.harness_url, token)

    async def verify(self, handle: WorkspaceHandle, task: TaskInput, env: Mapping[str, str]) -> None:
        """Return when the workspace answers us as well. Raises ``ProvisionFailed`` where it does not in its time."""

        async def alive() -> bool:
            return (await self.inspect(handle)).alive

        try:
            if not handle.agent:
                await self.harness(handle, task, env).health(timeout_seconds=VERIFY_SECONDS)
                return
            health = await self.agent(handle).wait_until_booted(VERIFY_SECONDS, worth_waiting=alive)
        except WorkspaceUnreachable as e:
            found = await self.inspect(handle)
            if not found.alive:
                raise gone(Loss(found.ending, found.log_tail)) from e
            raise never_ready(handle, e, found.log_tail) from e
        if health.status != "ok":
            tail = health.log_tail or (await self.inspect(handle)).log_tail
            raise ProvisionFailed(health.error or SAYS_FAILED, source=FailureSource.PROBE, detail=tail)

    async def probe(self, handle: WorkspaceHandle, until: float) -> LastLook:
        """Look once, until that time of the event loop's clock at the latest."""
        try:
            return await self._health(handle)
        except WorkspaceUnreachable as e:
            left = until - asyncio.get_running_loop().time()
            try:
                found = await no_longer_than(left, self.inspect(handle))
            except (BackendAway, TimeoutError) as away:
                return LastLook(error=f"{e} (and whether it lives cannot be asked: {away})")
            if found.alive:
                return LastLook(error=str(e), log_tail=found.log_tail)
            return hopeless(handle, f"the workspace ended by itself: {found.ending}", found.log_tail)

    async def probe_until_ready(self, handle: WorkspaceHandle) -> LastLook:
        """Look until it is ready, or never will be; every heartbeat tells what the last look saw."""
        pause = FIRST_PROBE_PAUSE_SECONDS
        while True:
            try:
                look = await self._health(handle)
            except WorkspaceUnreachable as e:  # the compute's own end is the watcher's business
                look = LastLook(error=str(e))
            if look.ready or look.failed:
                return look
            note(look.error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PROBE_PAUSE_SECONDS)

    async def _health(self, handle: WorkspaceHandle) -> LastLook:
        """Ask the workspace once. Raises ``WorkspaceUnreachable`` where no agent of ours answers."""
        if not handle.agent:
            await HarnessClient(self._client, handle.harness_url).health(timeout_seconds=LAST_PROBE_SECONDS)
            return LastLook(ready=True)
        health = await self.agent(handle).health(timeout_seconds=LAST_PROBE_SECONDS)
        if health.status == "ok":
            return LastLook(ready=True)
        if health.status == "booting":
            return LastLook(error=f"still booting: {health.step or 'no step named'}", log_tail=health.log_tail)
        tail = health.log_tail or (await self.inspect(handle)).log_tail
        return hopeless(handle, health.error or SAYS_FAILED, tail)

    async def loss(self, handle: WorkspaceHandle) -> Loss | None:
        """Return how the workspace, or the harness in it, has ended; None where it lives as far as can be known."""
        found = await self.inspect(handle)
        if not found.alive:
            return Loss(found.ending, found.log_tail)
        if handle.agent:
            with contextlib.suppress(WorkspaceUnreachable):
                health = await self.agent(handle).health(timeout_seconds=LAST_PROBE_SECONDS)
                if health.status == "failed":
                    return Loss(health.error or SAYS_FAILED, health.log_tail or found.log_tail)
        return None
