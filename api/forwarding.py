"""Callbacks on their way to workflows: signalled at once, or stored until Temporal is back."""

import asyncio
import contextlib
import logging
import random
from dataclasses import replace
from datetime import timedelta
from enum import Enum, auto

from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api.single_flight import SingleFlight
from api.temporal_setup import namespace_is_missing
from store.callbacks import STORED_CALLBACKS
from store.changes import Watch
from store.errors import RegistryError
from store.records import Callback, StoredCallback
from store.registry import Registry

SIGNAL_SECONDS = 2.0
FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 30.0
"""How long a stored callback can stay unseen where its notification was lost, as behind a connection pooler."""
_FAILURES_PER_ROUND = 3

_log = logging.getLogger(__name__)


class Sent(Enum):
    """What became of a signal."""

    TAKEN = auto()
    """Temporal has it; a repeat was dropped there."""
    NO_WORKFLOW = auto()
    """The workflow has closed, or never was, or takes no further signal: nothing is left to deliver it to."""
    AWAY = auto()
    """Temporal could not be asked."""


class Forwarder:
    """Sends callbacks to workflows; what it has to store, :meth:`deliver_stored` delivers later."""

    def __init__(self, temporal: Client, registry: Registry) -> None:
        self._temporal = temporal
        self._registry = registry
        self._signals: SingleFlight[Sent] = SingleFlight()

    async def signal(self, callback: Callback) -> Sent:
        """Signal the workflow, at most 2 s long. Repeats that come while one is on its way share it."""
        key = (callback.workflow_id, callback.request_id)
        return await self._signals.run(key, lambda: self._signal(callback))

    async def _signal(self, callback: Callback) -> Sent:
        request = SignalWorkflowExecutionRequest(
            namespace=self._temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=callback.workflow_id),
            signal_name=callback.signal,
            input=Payloads(payloads=await self._temporal.data_converter.encode([callback.payload])),
            identity=self._temporal.service_client.config.identity,
            request_id=callback.request_id,
        )
        try:
            # The raw RPC, because WorkflowHandle.signal chooses a new request id each time. The outer limit also
            # covers connecting, which a client that was made while Temporal was away does here.
            async with asyncio.timeout(SIGNAL_SECONDS + 0.5):
                await self._temporal.workflow_service.signal_workflow_execution(
                    request, timeout=timedelta(seconds=SIGNAL_SECONDS)
                )
        except RPCError as e:
            return _judge(e, callback)
        except (TimeoutError, RuntimeError) as e:
            _log.warning("%s for %s: Temporal is away: %s", callback.signal, callback.workflow_id, e or "no answer")
            return Sent.AWAY
        return Sent.TAKEN

    async def store(self, callback: Callback) -> None:
        """Store a callback that Temporal could not take, to be delivered later; raise ``RegistryUnavailable``."""
        await self._registry.callbacks.store(callback)

    async def deliver_stored(self) -> None:
        """Deliver what is stored, by whichever process, then wait until something is; never returns.

        Every process does so: the one that stored a callback may be gone by the time it can be delivered, and Temporal
        drops what two of them deliver. Between rounds that failed it waits, 0.25 s doubling to 5 s.
        """
        async with self._registry.changes.watch(STORED_CALLBACKS) as changed:
            await self._deliver_again_and_again(changed)

    async def _deliver_again_and_again(self, changed: Watch) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                done = await self._deliver_round()
            except RegistryError as e:
                _log.info("stored callbacks cannot be read: %s", e)
                done = False
            except Exception:
                # The deliverer outlives whatever one round meets: without it, callbacks would stay undelivered unseen.
                _log.exception("delivering stored callbacks failed")
                done = False
            if done:
                backoff = FIRST_BACKOFF_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_WAIT_SECONDS * random.uniform(0.75, 1)):  # noqa: S311
                        await changed.wait()
            else:
                await asyncio.sleep(backoff * random.uniform(0.75, 1.25))  # noqa: S311 (spreads load, guards nothing)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _deliver_round(self) -> bool:
        """Deliver everything that is stored; False where something could not be delivered."""
        while batch := await self._registry.callbacks.undelivered():
            failures = 0
            for callback in batch:
                if await self._deliver(callback):
                    await self._registry.callbacks.delivered(callback.id)
                else:
                    failures += 1
                    # One callback that is not taken must not hold up the others; several mean that Temporal is away.
                    if failures == _FAILURES_PER_ROUND:
                        return False
            if failures:
                return False
        return True

    async def _deliver(self, callback: StoredCallback) -> bool:
        sent = await self.signal(callback)
        if sent is Sent.NO_WORKFLOW:
            state = await self._registry.workspaces.attempt_state(callback.workspace_id)
            if state and state.attempt == callback.attempt and state.owner_workflow_id != callback.workflow_id:
                sent = await self.signal(replace(callback, workflow_id=state.owner_workflow_id))
        return sent is not Sent.AWAY


def _judge(error: RPCError, callback: Callback) -> Sent:
    what = f"{callback.signal} for {callback.workflow_id}"
    if error.status is RPCStatusCode.NOT_FOUND and not namespace_is_missing(error):
        return Sent.NO_WORKFLOW
    if error.status in (RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION):
        # For example more signals than one workflow may have. It will not be taken later either.
        _log.error("%s was refused by Temporal: %s", what, error.message)
        return Sent.NO_WORKFLOW
    _log.warning("%s: Temporal is away: %s", what, error.message)
    return Sent.AWAY
