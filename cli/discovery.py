"""Which service a command talks to."""

import json
from pathlib import Path
from typing import NamedTuple

from cli import early
from cli.errors import Unreachable
from cli.home import StackRecord, read_record, read_token
from messages.defaults import DEFAULT_API_URL
from messages.names import SERVICE
from messages.settings import Settings
from messages.urls import without_user_info
from workers.errors import ASK_THE_DOCTOR

_ANSWER_SECONDS = 5.0


class Service(NamedTuple):
    """Where the task API is, what it is shown, and the embedded stack that it belongs to, if it does."""

    url: str
    token: str | None
    stack: StackRecord | None = None

    @property
    def shown_url(self) -> str:
        """The URL as it may be printed."""
        return without_user_info(self.url)


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
    try:
        answer = early.get(f"{record.api_url}/healthz", seconds=_ANSWER_SECONDS)
    except early.NoAnswer:
        return None
    return Service(record.api_url, _token(settings, settings.home), record) if answer.status == 200 else None


def default_service(settings: Settings, *, seconds: float = _ANSWER_SECONDS) -> Service | None:
    """Return the service at the usual address (``DEFAULT_API_URL``) where it is a taskrunner's that answers in time.

    Its token is None where ``TASKRUNNER_API_TOKEN`` is not set: that of the home opens the home's own stack only.
    """
    try:
        answer = early.get(f"{DEFAULT_API_URL}/healthz", seconds=seconds)
        is_ours = answer.status == 200 and json.loads(answer.body).get("service") == SERVICE
    except (early.NoAnswer, ValueError, AttributeError):
        return None
    token = settings.api_token.get_secret_value() if settings.api_token else None
    return Service(DEFAULT_API_URL, token) if is_ours else None


def service_of_others(settings: Settings) -> Service | None:
    """Return the service that a ``run`` uses in place of a stack of its own home, if there is one."""
    if service := named_service(settings):
        return service
    if embedded_service(settings) is not None:
        return None
    service = default_service(settings)
    return service if service is not None and service.token is not None else None


def find_service(settings: Settings) -> Service:
    """Return the service to talk to; raise ``Unreachable`` where none answers, or none whose token is known."""
    service = named_service(settings) or embedded_service(settings)
    if service is not None:
        return service
    service = default_service(settings)
    had_a_stack = read_record(settings.home) is not None
    if service is None or (service.token is None and had_a_stack):
        raise _nobody(settings)
    if service.token is None:
        raise Unreachable(
            f"a service answers at {service.url}, but TASKRUNNER_API_TOKEN is not set; set it to a token of that"
            " service, or start a service of your own with: taskrunner dev"
        )
    return service


def find_again(settings: Settings, lost: Service) -> Service:
    """Return what has taken the place of a service that went away; raise ``Unreachable`` where nothing has.

    What was a stack of the home is looked for there alone: whoever else answers meanwhile knows nothing of its tasks.
    """
    if lost.stack is None:
        return lost
    service = embedded_service(settings)
    if service is None:
        raise _nobody(settings)
    return service


def _nobody(settings: Settings) -> Unreachable:
    return Unreachable(f"no service answers for {settings.home}; start one with: taskrunner dev; {ASK_THE_DOCTOR}")


def _token(settings: Settings, home: Path) -> str | None:
    return settings.api_token.get_secret_value() if settings.api_token else read_token(home)
