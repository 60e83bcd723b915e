"""``GET /metrics``: figures for Prometheus, of this process and of the registry.

No label holds an id or anything that a request could make up, so there are never more than a few hundred series.
"""

import time
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import UserCredentials
from api.dependencies import Api, require_user
from api.openapi import text_answer
from messages.statuses import TaskStatus
from store.errors import RegistryError

_PROCESS = CollectorRegistry()
"""What is counted in this process, whichever of its listeners was asked."""

ProcessCollector(registry=_PROCESS)
_LATENCY = Histogram(
    "taskrunner_http_request_seconds",
    "Time until the answer to a request began.",
    ["method", "route", "status"],
    registry=_PROCESS,
)
_CALLBACKS = Counter(
    "taskrunner_callbacks",
    "Callbacks of workspaces by kind and answer: taken, kept (Temporal is away), refused (another verdict stands), or"
    " the status of an error.",
    ["kind", "answer"],
    registry=_PROCESS,
)
_CALLBACK_ROUTES = {
    "/api/workspaces/{workspace_id}/ready": "ready",
    "/api/workspaces/{workspace_id}/provisioning-failed": "provisioning-failed",
    "/api/workspaces/{workspace_id}/boot-log": "boot-log",
    "/api/workspaces/{workspace_id}/heartbeat": "heartbeat",
    "/api/workspaces/{workspace_id}/sessions/{session_id}/output": "output",
    "/api/workspaces/{workspace_id}/sessions/{session_id}/finished": "finished",
}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ANSWER = "taskrunner.callback_answer"

router = APIRouter(tags=["health"])


def name_answer(request: Request, answer: str) -> None:
    """Say what the answer to a callback means where its status does not."""
    request.scope[_ANSWER] = answer


class Measured:
    """ASGI middleware: measures each request, and counts callbacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                _count(scope, int(message["status"]), time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if not answered:  # what is above answers it with a 500
                _count(scope, 500, time.perf_counter() - began)
            raise


def _count(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "other")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    _LATENCY.labels(method, route, str(status)).observe(seconds)
    if kind := _CALLBACK_ROUTES.get(route):
        _CALLBACKS.labels(kind, scope.get(_ANSWER) or ("taken" if status < 300 else str(status))).inc()


class _Figures:
    """The registry's figures at one moment, as a collector."""

    def __init__(self, tasks: dict[TaskStatus, int] | None, undelivered: int | None) -> None:
        self._tasks, self._undelivered = tasks, undelivered

    def collect(self) -> Iterator[Metric]:
        """Yield them; where PostgreSQL is away, only that."""
        yield GaugeMetricFamily(
            "taskrunner_registry_up", "Whether PostgreSQL answers.", value=int(self._tasks is not None)
        )
        if self._tasks is None or self._undelivered is None:
            return
        by_status = GaugeMetricFamily("taskrunner_tasks", "Tasks by status.", labels=["status"])
        for status in TaskStatus:
            by_status.add_metric([status.value], self._tasks.get(status, 0))
        yield by_status
        yield GaugeMetricFamily(
            "taskrunner_callbacks_undelivered", "Stored callbacks that wait for Temporal.", value=self._undelivered
        )


@router.get("/metrics", response_class=Response, responses=text_answer("text/plain"))
async def metrics(request: Request, api: Api, credentials: UserCredentials) -> Response:
    """Return the figures in Prometheus' text format. On loopback no token is asked for; elsewhere an API token is."""
    if not request.app.state.loopback:
        await require_user(credentials, api)
    try:
        figures = _Figures(await api.registry.tasks.count_by_status(), await api.registry.callbacks.count_undelivered())
    except RegistryError:
        figures = _Figures(None, None)
    registry = CollectorRegistry()
    registry.register(figures)  # pyright: ignore[reportArgumentType] (a collector is whatever has collect)
    return Response(generate_latest(_PROCESS) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
