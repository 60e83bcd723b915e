"""Whether the API lives, and whether what it needs is there. No token is asked for, and nothing secret is said."""

import asyncio
from collections.abc import Awaitable
from enum import StrEnum

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.dependencies import Api, Services
from api.problems import RETRY_AFTER_SECONDS
from api.temporal_setup import look_at_setup
from messages.names import SERVICE
from store.errors import MigrationError

CHECK_SECONDS = 3.0

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process serves, whatever else is away, and whose it is."""
    return {"status": "ok", "service": SERVICE}


@router.get("/readyz")
async def readyz(api: Api) -> JSONResponse:
    """Say whether Temporal and PostgreSQL answer and are set up: 200 where both are, else 503.

    Of each part: ``ok``, ``away``, or ``not set up``, for which ``problems`` says what is wrong and what mends it.
    """
    checks = {"temporal": _check(_temporal(api)), "registry": _check(_registry(api))}
    found = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    parts = {name: state for name, (state, _) in found.items()}
    if set(parts.values()) == {_State.OK}:
        return JSONResponse({"status": "ok", "parts": parts})
    return JSONResponse(
        {
            "status": "unavailable",
            "parts": parts,
            "problems": {name: problem for name, (_, problem) in found.items() if problem},
        },
        503,
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


class _State(StrEnum):
    OK = "ok"
    AWAY = "away"
    NOT_SET_UP = "not set up"


async def _temporal(api: Services) -> str:
    return str((await look_at_setup(api.temporal)).problem or "")


async def _registry(api: Services) -> str:
    try:
        await api.registry.ping()
    except MigrationError as e:
        return str(e)
    return ""


async def _check(part: Awaitable[str]) -> tuple[_State, str]:
    """Return the state of a part that says what is wrong with its set-up, if anything; and that problem."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            problem = await part
    except Exception:
        return _State.AWAY, ""
    return (_State.NOT_SET_UP, problem) if problem else (_State.OK, "")
