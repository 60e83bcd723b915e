"""A session that is one run of a harness: created once although its API knows no idempotency, followed to its end.

A run's events are followed over server-sent events. They are kept in the harness's memory, so a stream that breaks is
resumed after the last event (``Last-Event-ID``), and who follows anew begins with the first: what the same events say
is the same text, of which the registry stores each byte once. A slow reader misses events: a gap in their numbers
shows it.

After the death of its process a run stays ``running`` for ever, where it is known at all. So whoever waits looks after
the run once a heartbeat, and after the harness as soon as a stream breaks.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

from activities.endings import ended
from activities.errors import WorkspaceUnreachable
from activities.harness_client import HarnessClient, HarnessEvent, HarnessRun, RunStatus
from activities.harness_output import Transcript, summary_of, waits_for
from activities.heartbeat import note
from messages.activities import SessionRequest
from messages.signals import SessionFinished
from messages.statuses import SessionStatus
from store.sessions import SessionStore

MISSED_HEARTBEATS = 3
FLUSH_SECONDS = 0.2
FLUSH_BYTES = 32 * 1024
LAST_EVENTS_SECONDS = 2.0
"""How long the events of a run that has ended may keep us waiting before its end is taken from its record."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0

FindLoss = Callable[[], Awaitable[str | None]]
"""Says why the harness will never answer again; None where it may."""

_ENDS = {
    RunStatus.COMPLETED: SessionStatus.COMPLETED,
    RunStatus.FAILED: SessionStatus.FAILED,
    RunStatus.CANCELLED: SessionStatus.CANCELLED,
}
_LAST_EVENTS = {f"run.{status.value}": status for status in _ENDS}


async def create_run(
    client: HarnessClient, prompt: str, session_id: str, *, is_repeat: bool, restart: Callable[[], Awaitable[None]]
) -> str:
    """Return the id of the session's run, which is started unless it was before. The session is its conversation.

    ``is_repeat``: an earlier call may have started it, and lost the answer. Where the harness keeps no list of its
    runs, ``restart`` then ends whatever that call started.
    """
    known = await client.runs_of(session_id)
    if known:
        first, *others = reversed(known)
        for other in others:  # of a caller that was cut off and came late
            if not other.status.is_final:
                await client.cancel(other.id)
        return first.id
    if known is None and is_repeat:
        await restart()
    return await client.start_run(prompt, session_id)


async def stop_run(
    client: HarnessClient, request: SessionRequest, sessions: SessionStore, grace_seconds: float
) -> SessionFinished | None:
    """End the session's run, store what it still says, and return its end; None where no run of it is known.

    Raises :class:`WorkspaceUnreachable` where the harness does not answer.
    """
    run_id = request.run_id
    if not run_id:
        known = await client.runs_of(request.session_id)
        if not known:
            return None
        run_id = known[-1].id
    await client.cancel(run_id)

    async def unknown() -> str | None:
        return None

    follower = Follower(client, request.model_copy(update={"run_id": run_id}), sessions, unknown)
    try:
        async with asyncio.timeout(grace_seconds):
            return await follower.follow()
    except TimeoutError:
        error = f"The harness did not end its run within {grace_seconds:g} s; it ends with the workspace."
        return ended(request, SessionStatus.CANCELLED, error)


class Follower:
    """Follows one run from its first event to its last, or to the loss of its harness."""

    def __init__(
        self, client: HarnessClient, request: SessionRequest, sessions: SessionStore, find_loss: FindLoss
    ) -> None:
        self._client = client
        self._request = request
        self._sessions = sessions
        self._find_loss = find_loss
        self._interval: timedelta = request.task.template.heartbeat_interval
        self._transcript = Transcript()
        self._text = ""
        self._offset = 0
        self._stored = 0
        self._last_id = ""
        self._next_number = 0
        self._gap_at: int | None = None
        self._waiting = self._shown = ""
        self._end: SessionFinished | None = None
        self._final: HarnessRun | None = None

    async def follow(self) -> SessionFinished:
        """Return how the session ended."""
        self._stored = await self._append(0, "")
        loop = asyncio.get_running_loop()
        pause, silent_since = _FIRST_PAUSE_SECONDS, None
        while True:
            before = self._last_id
            try:
                is_followed = await self._read_stream()
                if self._end is None:
                    await self._look_after(is_followed)
                silent_since = None
            except WorkspaceUnreachable as e:
                silent_since = loop.time() if silent_since is None else silent_since
                await self._judge(e, loop.time() - silent_since)
            await self._flush()
            if self._end is not None:
                return self._end
            pause = _FIRST_PAUSE_SECONDS if self._last_id != before else min(pause * 2, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _read_stream(self) -> bool:
        """Take events until the run has ended or the stream breaks off; False where the harness does not follow it."""
        async with self._client.events(self._request.run_id, after=self._last_id) as stream:
            if stream is None:
                return False
            pending = asyncio.ensure_future(_next(stream))
            try:
                while self._end is None:
                    done, _ = await asyncio.wait({pending}, timeout=self._patience)
                    if not done:
                        if await self._is_over_when_idle():
                            break
                        continue
                    event = pending.result()
                    if event is None or not await self._take(event):
                        break
                    pending = asyncio.ensure_future(_next(stream))
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
        return True

    @property
    def _patience(self) -> float:
        if self._text or self._waiting != self._shown:
            return FLUSH_SECONDS
        return LAST_EVENTS_SECONDS if self._final else self._interval.total_seconds()

    async def _is_over_when_idle(self) -> bool:
        """Do what there is to do while no event comes; True where none will come any more."""
        if self._text or self._waiting != self._shown:
            await self._flush()
            return False
        if self._final is not None:
            return True
        run = await self._client.run(self._request.run_id)
        if run is not None and run.status.is_final:
            self._final = run
            return False
        return run is None

    async def _take(self, event: HarnessEvent) -> bool:
        """Take one event; False where others before it are missing, which are to be asked for."""
        number = event.number
        if number is not None:
            if number < self._next_number:
                return True
            if number > self._next_number and self._gap_at != number:
                self._gap_at = number
                return False
            self._next_number = number + 1
        self._last_id = event.id
        self._text += self._transcript.add(event)
        if (waiting := waits_for(event)) is not None:
            self._waiting = waiting
        if status := _LAST_EVENTS.get(event.type):
            self._waiting = ""
            output, error = (str(event.payload.get(key) or "") for key in ("output", "error"))
            self._end = _end_of(self._request, status, output, error)
        if len(self._text) >= FLUSH_BYTES:
            await self._flush()
        return True

    async def _look_after(self, is_followed: bool) -> None:
        """Ask the harness about a run whose stream is over although no last event came."""
        run = await self._client.run(self._request.run_id)
        if run is None or not (is_followed or run.status.is_final):
            self._interrupt("the harness was started anew and has forgotten the run")
        elif run.status.is_final and (self._final is not None or not is_followed):
            self._end = _end_of(self._request, run.status, run.output, run.error)
        elif run.status.is_final:
            self._final = run  # its last events are asked for once more

    async def _judge(self, e: WorkspaceUnreachable, silent_seconds: float) -> None:
        """Decide whether a harness that does not answer is lost."""
        if (loss := await self._find_loss()) is not None:
            self._interrupt(loss)
        elif silent_seconds >= MISSED_HEARTBEATS * self._interval.total_seconds():
            self._interrupt(f"the harness has not answered for {silent_seconds:.0f} s: {e}")
        else:
            note(str(e))

    def _interrupt(self, error: str) -> None:
        self._end = ended(self._request, SessionStatus.INTERRUPTED, error)

    async def _flush(self) -> None:
        """Store the text so far, and what the run waits for."""
        if self._text:
            size = len(self._text.encode("utf-8", "replace"))
            if self._offset + size > self._stored:
                self._stored = await self._append(self._offset, self._text)
            self._offset += size
            self._text = ""
        if self._waiting != self._shown and self._offset >= self._stored:
            note(self._waiting or "running")
            await self._sessions.record_waiting(self._request.session_id, self._waiting)
            self._shown = self._waiting

    async def _append(self, offset: int, text: str) -> int:
        """Store text and return how much is stored in all."""
        handle = self._request.handle
        appended = await self._sessions.append_output(
            handle.workspace_id, handle.attempt, self._request.session_id, offset, text
        )
        return appended.next_offset


async def _next(stream: AsyncIterator[HarnessEvent]) -> HarnessEvent | None:
    return await anext(stream, None)


def _end_of(request: SessionRequest, status: RunStatus, output: str, error: str) -> SessionFinished:
    text = {RunStatus.FAILED: error or "the run failed without saying why", RunStatus.CANCELLED: "cancelled"}
    return ended(request, _ENDS[status], text.get(status, ""), summary=summary_of(output))
