"""The service that commands talk to."""

import time
from collections.abc import Callable

import httpx

from cli.discovery import Service
from cli.doctor.check import PATIENCE_SECONDS, Check, broken, ok
from messages.names import SERVICE
from messages.urls import is_loopback


def check_service(service: Service, *, start: str, seconds: float = PATIENCE_SECONDS) -> Check:
    """Check that the service answers, takes our token, and has what it needs; ``start`` is what starts it."""
    found = service.shown_url
    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {service.token}"} if service.token else {}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=not is_loopback(service.url)) as client:

        def get(path: str) -> httpx.Response:
            return client.get(path, timeout=max(deadline - time.monotonic(), 0.1))

        try:
            health, tasks = get("/healthz"), get("/api/tasks?limit=1")
        except httpx.HTTPError as e:
            reason = str(e) or type(e).__name__
            return broken("api", found, f"no service answers there ({reason})", start)
        if not _is_ours(health):
            return broken("api", found, "what answers there is not taskrunner's API", "correct TASKRUNNER_API_URL")
        if tasks.status_code == 401:
            problem, mend = service.refusal
            return broken("api", found, f"it {problem}", mend)
        return _check_ready(found, get)


def _is_ours(health: httpx.Response) -> bool:
    try:
        return health.status_code == 200 and health.json().get("service") == SERVICE
    except (ValueError, AttributeError):
        return False


def _check_ready(found: str, get: Callable[[str], httpx.Response]) -> Check:
    try:
        answer = get("/readyz").json()
        parts = answer["parts"]
        away = [str(part) for part, state in parts.items() if state != "ok"]
        # What mends a part that is away is found out where it is: this very command says it there.
        problems = [str(text) for part, text in answer.get("problems", {}).items() if parts[part] != "away"]
    except (httpx.HTTPError, ValueError, AttributeError, KeyError):
        away, problems = ["Temporal or PostgreSQL"], []
    if problems:
        problem, _, mend = problems[0].partition("; ")
        return broken(
            "api",
            found,
            f"it answers, but {problem}",
            mend.removeprefix("mend it: ").removeprefix("run: ") or "see its log",
        )
    if not away:
        return ok("api", f"{found}, ready, takes our token")
    names = " and ".join({"temporal": "Temporal", "registry": "PostgreSQL"}.get(part, part) for part in away)
    return broken("api", found, f"it answers, but {names} does not answer it", "taskrunner doctor, on its machine")
