"""Notices that a workspace has gone silent under its session, and tells its owner.

What ends is noticed at once by whoever watches it (``activities/watcher.py``). A frozen agent, or a host without power,
ends nothing that anybody could see: all there is are heartbeats that do not come. Every worker looks at them, once for
all tasks, when the next one could be overdue. Nothing of this is in a workflow's history until a workspace is lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from activities.agent_client import ANSWER_SECONDS, CONNECT_SECONDS, AgentClient
from activities.backends.contract import Backend, Compute
from activities.errors import ActivityFailure, WorkspaceUnreachable
from activities.threads import no_longer_than
from activities.watcher import Announce
from messages.keys import Keyring
from messages.names import host_task_queue
from messages.signals import WorkspaceLost
from messages.statuses import BackendKind
from store.errors import RegistryError
from store.records import Beat
from store.registry import Registry

MISSED_BEATS = 3
"""After so many heartbeats that did not come a workspace is asked whether it is still there."""
UNASKABLE_SECONDS = 120.0
"""How long a workspace is silent at least before it is lost without having been asked."""
IDLE_SECONDS = 60.0
"""How long at most until the next look; workspaces that others brought up are known by then."""
_SHORTEST_PAUSE_SECONDS = 1.0
_PROMPT_SECONDS = 1.0
_API_SECONDS = 5.0
_LOG_SECONDS = 3.0
_TELL_SECONDS = 5.0
_RPC = timedelta(seconds=5)
_POLLED_LATELY = timedelta(minutes=2)
"""A worker asks for work at least once a minute; Temporal remembers for five that it did."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a look needs. ``api_url`` is where the workspaces of this host send their heartbeats."""

    client: Client
    registry: Registry
    keys: Keyring
    http: httpx.AsyncClient
    api_url: str


class SilenceWatcher:
    """Watches the heartbeats of all workspaces with a session; an async context manager that watches while it is open.

    A workspace is lost when it has been silent for 3 heartbeat intervals, since its last heartbeat or since we could
    have heard one again (PostgreSQL and the API were there all that time), whichever is later, and then does not answer
    ``GET /healthz`` to the worker of its host. Where that host has had no worker for 2 minutes either, nobody can ask.
    ``announce`` is called once for each; that several workers do so changes nothing.
    """

    def __init__(
        self, around: Surroundings, host_id: str, backends: Mapping[BackendKind, Backend], announce: Announce
    ) -> None:
        self._around = around
        self._host_id = host_id
        self._backends = backends
        self._announce = announce
        self._told: set[tuple[str, int]] = set()
        self._soon = asyncio.Event()
        self._heard_since = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SilenceWatcher":
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name="watch for silent workspaces")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look_soon(self) -> None:
        """Take a new workspace into account."""
        self._soon.set()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard_since = loop.time()
        while True:
            self._soon.clear()
            try:
                pause = await self._look()
            except RegistryError as e:
                _log.info("heartbeats cannot be read: %s", e)
                self._heard_since, pause = loop.time(), _SHORTEST_PAUSE_SECONDS
            except Exception:
                # It outlives whatever one look meets: without it, silent workspaces would stay unnoticed.
                _log.exception("looking for silent workspaces failed")
                pause = IDLE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._soon.wait()

    async def _look(self) -> float:
        """Look once; return the seconds until the next heartbeat could be overdue."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        beats = await self._around.registry.workspaces.beats()
        if loop.time() - asked_at > _PROMPT_SECONDS:  # it was away, and came back while we waited for it
            self._heard_since = loop.time()
        self._told &= {(beat.workspace_id, beat.attempt) for beat in beats}
        silent = [beat for beat in beats if self._is_ours_to_ask(beat) and _beats_left(beat, beat.silent_seconds) <= 0]
        if silent and not await self._api_answers():
            self._heard_since = loop.time()
        heard = loop.time() - self._heard_since
        await asyncio.gather(*(self._ask(beat) for beat in silent if _beats_left(beat, heard) <= 0))
        # Once an interval at least: an outage that no look falls into is shorter than what counts as silence.
        left = [_beats_left(beat, min(beat.silent_seconds, heard)) * beat.interval_seconds for beat in beats]
        pauses = [beat.interval_seconds for beat in beats] + [seconds for seconds in left if seconds > 0]
        return max(_SHORTEST_PAUSE_SECONDS, min([IDLE_SECONDS, *pauses]))

    def _silence(self, beat: Beat) -> float:
        return min(beat.silent_seconds, asyncio.get_running_loop().time() - self._heard_since)

    def _is_ours_to_ask(self, beat: Beat) -> bool:
        is_known = bool(beat.has_session and beat.host_id and beat.harness_url)
        return is_known and (beat.workspace_id, beat.attempt) not in self._told

    async def _api_answers(self) -> bool:
        try:
            async with asyncio.timeout(_API_SECONDS):
                answer = await self._around.http.get(f"{self._around.api_url.rstrip('/')}/healthz")
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as e:
            _log.info("workspaces are silent, but the API does not answer either: %s", e or type(e).__name__)
            return False
        return answer.status_code < 500

    async def _ask(self, beat: Beat) -> None:
        """Announce the workspace's loss unless somebody can still reach it, or it has been heard meanwhile."""
        compute = Compute(workspace_id=beat.workspace_id, attempt=beat.attempt, task_id=beat.task_id)
        is_here = beat.host_id == self._host_id
        why = await self._ask_agent(beat, compute) if is_here else await self._ask_host(beat)
        if not why or not await self._is_still_silent(beat):
            return
        log_tail = ""
        if is_here and beat.backend in self._backends:
            with contextlib.suppress(ActivityFailure, TimeoutError):
                # Not for long: a Docker that hangs would hide what became of this workspace, and of all others.
                found = await no_longer_than(_LOG_SECONDS, self._backends[beat.backend].inspect(compute))
                log_tail = found.log_tail
        heard = (
            f"its last heartbeat came {beat.silent_seconds:.0f} s before it was looked for"
            if beat.has_beaten
            else f"no heartbeat has come in the {beat.silent_seconds:.0f} s since its session began"
        )
        reason = f"The workspace went silent: {heard}, and {why}."
        _log.warning("workspace %s: %s", compute.name, reason)
        lost = WorkspaceLost(workspace_id=beat.workspace_id, attempt=beat.attempt, reason=reason, log_tail=log_tail)
        try:
            # Not for long: what could not be told is found out anew, because it may be over by then.
            async with asyncio.timeout(_TELL_SECONDS):
                await self._announce(compute, lost)
        except TimeoutError:
            return
        self._told.add((beat.workspace_id, beat.attempt))

    async def _ask_agent(self, beat: Beat, compute: Compute) -> str:
        """Return why the agent counts as gone; empty where it answers, and only its heartbeats do not get through."""
        assert beat.harness_url is not None  # _is_ours_to_ask
        token = self._around.keys.agent_token(compute.workspace_id, compute.attempt)
        patience = min(ANSWER_SECONDS, max(CONNECT_SECONDS, beat.interval_seconds))
        try:
            await AgentClient(self._around.http, beat.harness_url, token).health(timeout_seconds=patience)
        except WorkspaceUnreachable as e:
            return f"its agent does not answer: {e}"
        return ""

    async def _ask_host(self, beat: Beat) -> str:
        """Return why the host counts as gone; empty where it has a worker, whose business the workspace is."""
        if self._silence(beat) < UNASKABLE_SECONDS:
            return ""
        assert beat.host_id is not None  # _is_ours_to_ask
        client = self._around.client
        request = DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=host_task_queue(beat.host_id)),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
        try:
            answer = await client.workflow_service.describe_task_queue(request, timeout=_RPC)
        except (RPCError, RuntimeError):  # Temporal is away: nothing is known
            return ""
        oldest = datetime.now(UTC) - _POLLED_LATELY
        if any(poller.last_access_time.ToDatetime(tzinfo=UTC) > oldest for poller in answer.pollers):
            return ""
        return f"no worker runs on its host {beat.host_id!r}"

    async def _is_still_silent(self, beat: Beat) -> bool:
        for now in await self._around.registry.workspaces.beats():
            if (now.workspace_id, now.attempt) == (beat.workspace_id, beat.attempt):
                return now.has_session and now.silent_seconds >= beat.silent_seconds
        return False


def _beats_left(beat: Beat, seconds: float) -> float:
    """Return how many heartbeats may still be missed after so many seconds of silence."""
    return MISSED_BEATS - seconds / beat.interval_seconds
