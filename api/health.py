"""Whether the API lives, and whether what it needs is there. No token is asked for, and nothing secret is said."""

import asyncio
from collections.abc import Awaitable
from enum import StrEnum

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.dependencies import Api, Services
from api.problems import RETRY_AFTER_SECONDS
from api.temporal_setup import look_at_setup
from messages.names import SERVICE
from store.errors import MigrationError

CHECK_SECONDS = 3.0

# Neither addresses nor what was answered: whoever reaches the API may read it.
_DOCTOR = "taskrunner doctor, on the API's machine, says more"
_TEMPORAL_AWAY = f"Temporal does not answer; mend it: start it, or correct TEMPORAL_ADDRESS of the API; {_DOCTOR}"
_REGISTRY_AWAY = (
    f"PostgreSQL does not answer; mend it: start it, or correct TASKRUNNER_DATABASE_URL of the API; {_DOCTOR}"
)

router = APIRouter(tags=["health"])


class PartState(StrEnum):
    """How a part of the service is."""

    OK = "ok"
    AWAY = "away"
    NOT_SET_UP = "not set up"


class Health(BaseModel):
    """That the process serves, and whose it is."""

    status: str
    service: str


class ServiceReadiness(BaseModel):
    """Whether everything is there; ``problems`` says of each part that is not what is wrong, and what mends it."""

    status: str
    parts: dict[str, PartState]
    problems: dict[str, str] | None = None


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Health:
    """Say that the process serves, whatever else is away, and whose it is."""
    return Health(status="ok", service=SERVICE)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    response_model=ServiceReadiness,
    responses={503: {"model": ServiceReadiness, "description": "Something is away, or not set up."}},
)
async def readyz(api: Api) -> JSONResponse:
    """Say whether Temporal and PostgreSQL answer and are set up: 200 where both are, else 503.

    Of each part: ``ok``, ``away`` or ``not set up``. ``problems`` says what is wrong with it and what mends it.
    """
    checks = {
        "temporal": _check(_temporal(api), _TEMPORAL_AWAY),
        "registry": _check(_registry(api), _REGISTRY_AWAY),
    }
    found = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    parts = {name: state for name, (state, _) in found.items()}
    if set(parts.values()) == {PartState.OK}:
        return _answer(200, ServiceReadiness(status="ok", parts=parts))
    problems = {name: problem for name, (_, problem) in found.items() if problem}
    return _answer(
        503,
        ServiceReadiness(status="unavailable", parts=parts, problems=problems),
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _answer(status: int, readiness: ServiceReadiness, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(readiness.model_dump(mode="json", exclude_none=True), status, headers)


async def _temporal(api: Services) -> str:
    return str((await look_at_setup(api.temporal)).problem or "")


async def _registry(api: Services) -> str:
    try:
        await api.registry.ping()
    except MigrationError as e:
        return str(e)
    return ""


async def _check(part: Awaitable[str], away: str) -> tuple[PartState, str]:
    """Return the state of a part that says what is wrong with its set-up, if anything; and that problem.

    ``away`` is the problem of one that says nothing.
    """
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            problem = await part
    except Exception:
        return PartState.AWAY, away
    return (PartState.NOT_SET_UP, problem) if problem else (PartState.OK, "")
