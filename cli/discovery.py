"""Which service a command talks to."""

from pathlib import Path
from typing import NamedTuple

import httpx

from cli.errors import Unreachable
from cli.home import StackRecord, read_record, read_token
from messages.settings import Settings

_ANSWER_TIMEOUT = httpx.Timeout(5.0)


class Service(NamedTuple):
    """Where the task API is, what it is shown, and the embedded stack that it belongs to, if it does."""

    url: str
    token: str | None
    stack: StackRecord | None = None


def named_service(settings: Settings) -> Service | None:
    """Return the service that the environment names (``TASKRUNNER_API_URL``), answering or not."""
    if settings.api_url is None:
        return None
    return Service(settings.api_url, _token(settings, settings.home))


def embedded_service(settings: Settings) -> Service | None:
    """Return the service of this home's stack if there is one and it answers."""
    record = read_record(settings.home)
    if record is None or not record.is_alive:
        return None
    # No proxy from the environment: it is on the loopback interface of this machine.
    try:
        answer = httpx.get(f"{record.api_url}/healthz", timeout=_ANSWER_TIMEOUT, trust_env=False)
    except httpx.HTTPError:
        return None
    return Service(record.api_url, _token(settings, settings.home), record) if answer.status_code == 200 else None


def find_service(settings: Settings) -> Service:
    """Return the service to talk to; raise ``Unreachable`` where none answers."""
    service = named_service(settings) or embedded_service(settings)
    if service is None:
        raise Unreachable(f"no service answers for {settings.home}; start one with: taskrunner dev")
    return service


def _token(settings: Settings, home: Path) -> str | None:
    return settings.api_token.get_secret_value() if settings.api_token else read_token(home)
