"""What workspaces call: ready, failed, boot log, heartbeat, output and end of a session.

A callback that decides something is verified with the keys alone, validated with the very model that the workflow
reads, and signalled; only then is the registry read once, and only to choose the answer. The workflow decides.
"""

import asyncio
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from api.auth import CallbackCredentials
from api.dependencies import Api, Services
from api.forwarding import Sent
from api.limits import read_body
from api.metrics import name_answer
from api.openapi import json_body
from api.problems import Problem, unavailable
from messages.callbacks import (
    BootLogBody,
    CallbackAnswer,
    FinishedBody,
    HeartbeatAnswer,
    HeartbeatBody,
    OutputBody,
    ProvisioningFailedBody,
    ReadyBody,
    log_tail,
)
from messages.names import PROVISIONING_FAILED, SESSION_FINISHED, WORKSPACE_READY, is_session_of
from messages.signals import DEFAULT_FAILURE, ProvisioningFailed, SessionFinished, WorkspaceReady
from messages.statuses import SessionStatus, Verdict
from messages.tokens import CallbackClaims
from store.errors import OutputGap, RegistryError, UnknownSession
from store.records import AttemptState, Callback

ANSWER_READ_SECONDS = 0.25
"""How long the read that only chooses the answer may take."""
OWNER_READ_SECONDS = 2.0
"""How long it may take where the workflow has closed, so that the read also finds who owns the workspace now."""
STORE_SECONDS = 2.0
"""How long storing a callback may take; altogether an answer takes 9 s at most, whatever is away."""

_DECIDING: dict[str, Any] = {
    "response_model": CallbackAnswer,
    "responses": {202: {"model": CallbackAnswer, "description": "Temporal is away: kept, and delivered later."}},
}
"""How what decides something is answered, for the API's description."""

router = APIRouter(prefix="/api/workspaces/{workspace_id}", tags=["callbacks"])


class _Unknown(Enum):
    """The registry did not say."""

    UNKNOWN = auto()


@router.post("/ready", openapi_extra=json_body(ReadyBody), **_DECIDING)
async def ready(workspace_id: str, request: Request, api: Api, credentials: CallbackCredentials) -> JSONResponse:
    """Say that the workspace can take a session. Any number of repeats has the effect of one."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, ReadyBody, what="ready callback", empty_is_fine=True)
    message = WorkspaceReady(
        workspace_id=claims.sub, attempt=claims.att, agent_version=_clean(body.agent_version or "") or None
    )
    callback = Callback.of(WORKSPACE_READY, message, workflow_id=claims.wf, workspace_id=claims.sub, attempt=claims.att)
    return await _take(
        api, request, claims, callback, refused_by={Verdict.FAILED, Verdict.TIMED_OUT}, reason="workspace_not_running"
    )


@router.post("/provisioning-failed", openapi_extra=json_body(ProvisioningFailedBody), **_DECIDING)
async def provisioning_failed(
    workspace_id: str, request: Request, api: Api, credentials: CallbackCredentials
) -> JSONResponse:
    """Say that the workspace will never be ready. Any number of repeats has the effect of one."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, ProvisioningFailedBody, what="provisioning-failed callback", empty_is_fine=True)
    message = ProvisioningFailed(
        workspace_id=claims.sub,
        attempt=claims.att,
        error=_clean(body.error_message or "").strip() or DEFAULT_FAILURE,
        log_tail=log_tail(body.log_tail or ""),
    )
    callback = Callback.of(
        PROVISIONING_FAILED, message, workflow_id=claims.wf, workspace_id=claims.sub, attempt=claims.att
    )
    return await _take(api, request, claims, callback, refused_by={Verdict.READY}, reason="workspace_not_creating")


@router.post("/boot-log", status_code=202, openapi_extra=json_body(BootLogBody))
async def boot_log(workspace_id: str, request: Request, api: Api, credentials: CallbackCredentials) -> CallbackAnswer:
    """Record one boot step's progress."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, BootLogBody, what="boot-log callback")
    if not await api.registry.workspaces.append_boot_log(claims.sub, claims.att, body):
        await _explain_refusal(api, claims)
    return CallbackAnswer(success=True)


@router.post("/heartbeat", openapi_extra=json_body(HeartbeatBody), response_model_exclude_none=True)
async def heartbeat(workspace_id: str, request: Request, api: Api, credentials: CallbackCredentials) -> HeartbeatAnswer:
    """Record that the workspace lives. From half of the token's life the answer carries a new one."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, HeartbeatBody, what="heartbeat")
    if not await api.registry.workspaces.record_heartbeat(claims.sub, claims.att, body):
        await _explain_refusal(api, claims)
    return HeartbeatAnswer(refreshed_token=api.callback_auth.renewed(claims))


@router.post("/sessions/{session_id}/output", status_code=202, openapi_extra=json_body(OutputBody))
async def output(
    workspace_id: str, session_id: str, request: Request, api: Api, credentials: CallbackCredentials
) -> CallbackAnswer:
    """Store a piece of a session's output. What is stored already is not stored again."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, OutputBody, what="output callback")
    if not is_session_of(session_id, claims.sub, claims.att):
        raise _unknown_session()
    _check_attempt(await api.registry.workspaces.attempt_state(claims.sub), claims)
    try:
        await api.registry.sessions.append_output(claims.sub, claims.att, session_id, body.offset, "".join(body.chunks))
    except UnknownSession:
        raise _unknown_session() from None
    except OutputGap as e:
        raise Problem(
            409,
            "output-gap",
            f"output between byte {e.expected} and byte {body.offset} is missing; send from byte {e.expected}",
            expected_offset=e.expected,
        ) from None
    return CallbackAnswer(success=True)


@router.post("/sessions/{session_id}/finished", openapi_extra=json_body(FinishedBody), **_DECIDING)
async def finished(
    workspace_id: str, session_id: str, request: Request, api: Api, credentials: CallbackCredentials
) -> JSONResponse:
    """Say how a session ended. Any number of repeats has the effect of one."""
    claims = api.callback_auth.claims(credentials, workspace_id)
    body = await read_body(request, FinishedBody, what="finished callback")
    if not is_session_of(session_id, claims.sub, claims.att):
        raise _unknown_session()
    message = SessionFinished(
        workspace_id=claims.sub,
        attempt=claims.att,
        session_id=session_id,
        status=SessionStatus(body.status),
        exit_code=body.exit_code,
        summary=_clean(body.summary or ""),
        error=_clean(body.error_message or ""),
    )
    callback = Callback.of(
        SESSION_FINISHED,
        message,
        workflow_id=claims.wf,
        workspace_id=claims.sub,
        attempt=claims.att,
        session=session_id,
    )
    return await _take(api, request, claims, callback, refused_by=set(), reason="")


async def _take(
    api: Services,
    request: Request,
    claims: CallbackClaims,
    callback: Callback,
    *,
    refused_by: set[Verdict],
    reason: str,
) -> JSONResponse:
    """Signal the callback, or store it while Temporal is away, and answer by what the registry has recorded."""
    sent = await api.forwarder.signal(callback)
    state = await _state(api, claims.sub, ANSWER_READ_SECONDS if sent is Sent.TAKEN else OWNER_READ_SECONDS)
    if state is not _Unknown.UNKNOWN:
        state = _check_attempt(state, claims)
        if sent is Sent.NO_WORKFLOW and state.owner_workflow_id != callback.workflow_id:
            callback = replace(callback, workflow_id=state.owner_workflow_id)
            sent = await api.forwarder.signal(callback)
    if sent is Sent.AWAY:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await api.forwarder.store(callback)
        except (TimeoutError, RegistryError):
            raise unavailable("neither Temporal nor the registry can take the callback", "send it again") from None
        name_answer(request, "kept")
        return _answer(202, CallbackAnswer(success=True))
    if state is not _Unknown.UNKNOWN and state.verdict in refused_by:
        name_answer(request, "refused")
        return _answer(200, CallbackAnswer(success=False, reason=reason))
    return _answer(200, CallbackAnswer(success=True))


def _answer(status: int, answer: CallbackAnswer) -> JSONResponse:
    return JSONResponse(answer.model_dump(exclude_none=True), status)


async def _state(api: Services, workspace_id: str, seconds: float) -> AttemptState | _Unknown | None:
    """Return what the registry has of a workspace (None: nothing), or UNKNOWN where it does not say in time."""
    try:
        async with asyncio.timeout(seconds):
            return await api.state_reads.run(workspace_id, lambda: api.registry.workspaces.attempt_state(workspace_id))
    except (TimeoutError, RegistryError):
        return _Unknown.UNKNOWN


def _check_attempt(state: AttemptState | None, claims: CallbackClaims) -> AttemptState:
    """Raise 404 for a workspace that is not known, 403 for an attempt that has a successor."""
    if state is None:
        raise Problem(404, "unknown-workspace", f"there is no workspace {claims.sub!r}; nothing was done")
    if state.attempt > claims.att:
        raise Problem(
            403,
            "older-attempt",
            f"the token belongs to attempt {claims.att} of workspace {claims.sub!r}, which is at attempt"
            f" {state.attempt}; nothing was done",
        )
    return state


async def _explain_refusal(api: Services, claims: CallbackClaims) -> None:
    """Raise why the registry did not take a record of this attempt."""
    _check_attempt(await api.registry.workspaces.attempt_state(claims.sub), claims)


def _unknown_session() -> Problem:
    return Problem(404, "unknown-session", "this attempt of the workspace has no session of that id; nothing was done")


def _clean(text: str) -> str:
    """Return ``text`` without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "")
