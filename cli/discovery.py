"""Which service a command talks to."""

import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from cli.errors import Unreachable
from cli.home import StackRecord, read_record, read_token
from messages.defaults import DEFAULT_API_URL
from messages.names import SERVICE
from messages.settings import Settings
from messages.urls import without_user_info
from workers.errors import ASK_THE_DOCTOR

_ANSWER_TIMEOUT = httpx.Timeout(5.0)


class Service(NamedTuple):
    """Where the task API is, what it is shown, and the embedded stack that it belongs to, if it does."""

    url: str
    token: str | None
    stack: StackRecord | None = None

    @property
    def shown_url(self) -> str:
        """The URL as it may be printed."""
        return without_user_info(self.url)


def trust(url: str) -> ssl.SSLContext:
    """Return whose certificates are accepted at ``url``: those that httpx accepts; over plain HTTP nobody's.

    Loading them takes longer than most commands do.
    """
    if urlsplit(url).scheme == "https":
        return httpx.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


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
        answer = httpx.get(
            f"{record.api_url}/healthz", timeout=_ANSWER_TIMEOUT, trust_env=False, verify=trust(record.api_url)
        )
    except httpx.HTTPError:
        return None
    return Service(record.api_url, _token(settings, settings.home), record) if answer.status_code == 200 else None


def default_service(settings: Settings, *, seconds: float = 5.0) -> Service | None:
    """Return the service at the usual address (``DEFAULT_API_URL``) where it is a taskrunner's that answers in time.

    Its token is None where ``TASKRUNNER_API_TOKEN`` is not set: that of the home opens the home's own stack only.
    """
    try:
        answer = httpx.get(
            f"{DEFAULT_API_URL}/healthz", timeout=seconds, trust_env=False, verify=trust(DEFAULT_API_URL)
        )
        is_ours = answer.status_code == 200 and answer.json().get("service") == SERVICE
    except (httpx.HTTPError, ValueError, AttributeError):
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
