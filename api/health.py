"""Whether the API lives, and whether what it needs is there. No token is asked for, and nothing secret is said."""

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

from api.dependencies import Api
from api.problems import RETRY_AFTER_SECONDS
from messages.names import SERVICE

CHECK_SECONDS = 3.0

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process serves, whatever else is away, and whose it is."""
    return {"status": "ok", "service": SERVICE}


@router.get("/readyz")
async def readyz(api: Api) -> JSONResponse:
    """Say whether Temporal and PostgreSQL answer: 200 where both do, 503 where one does not, and which."""
    namespace = DescribeNamespaceRequest(namespace=api.temporal.namespace)
    checks = {
        "temporal": _answers(api.temporal.workflow_service.describe_namespace(namespace)),
        "registry": _answers(api.registry.ping()),
    }
    parts = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    if all(parts.values()):
        return JSONResponse({"status": "ok", "parts": dict.fromkeys(parts, "ok")})
    return JSONResponse(
        {"status": "unavailable", "parts": {name: "ok" if ok else "away" for name, ok in parts.items()}},
        503,
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


async def _answers(call: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await call
    except Exception:
        return False
    return True
