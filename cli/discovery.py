"""Which service a command talks to."""

import json
from pathlib import Path
from typing import NamedTuple

from cli import early
from cli.errors import Refused, Unreachable
from cli.home import StackRecord, has_records, read_record, read_token, require_usable
from messages.defaults import DEFAULT_API_URL, WHERE_TOKENS_ARE, token_path
from messages.names import SERVICE
from messages.settings import Settings
from messages.urls import is_loopback, without_user_info
from workers.errors import ASK_THE_DOCTOR

_ANSWER_SECONDS = 5.0


class Service(NamedTuple):
    """Where the task API is, what it is shown, and the embedded stack that it belongs to, if it does.

    ``token_file`` is where the token was read; None where ``TASKRUNNER_API_TOKEN`` gave it, or there is none.
    """

    url: str
    token: str | None
    stack: StackRecord | None = None
    token_file: Path | None = None

    @property
    def shown_url(self) -> str:
        """The URL as it may be printed."""
        return without_user_info(self.url)

    @property
    def is_of_dev(self) -> bool:
        """Whether a ``taskrunner dev`` would take its place: what stands elsewhere is not of ours to start."""
        return self.stack is not None or self.url in {
            DEFAULT_API_URL,
            DEFAULT_API_URL.replace("127.0.0.1", "localhost"),
        }

    @property
    def refusal(self) -> tuple[str, str]:
        """What is wrong where the service answers 401, and what mends it."""
        mend = f"set TASKRUNNER_API_TOKEN to a token of that service ({WHERE_TOKENS_ARE})"
        if self.token is None:
            return "wants a token, and TASKRUNNER_API_TOKEN is not set", mend
        if self.token_file is not None:
            return f"does not accept the token in {self.token_file}", mend
        if self.stack is not None:
            return "does not accept TASKRUNNER_API_TOKEN", "unset it: the stack of this home takes the home's own token"
        return "does not accept TASKRUNNER_API_TOKEN", f"correct it ({WHERE_TOKENS_ARE})"


def service_at(settings: Settings, url: str, stack: StackRecord | None = None) -> Service:
    """Return the service at ``url`` with the token that it is shown: the environment's, else the home's.

    The home's is shown to services on this machine alone, and is not told to others.
    """
    if settings.api_token is not None:
        return Service(url, settings.api_token.get_secret_value(), stack)
    if is_loopback(url) and (token := read_token(settings.home)):
        return Service(url, token, stack, token_path(settings.home))
    return Service(url, None, stack)


def named_service(settings: Settings) -> Service | None:
    """Return the service that the environment names (``TASKRUNNER_API_URL``), answering or not."""
    return service_at(settings, settings.api_url) if settings.api_url is not None else None


def embedded_service(settings: Settings) -> Service | None:
    """Return the service of this home's stack if there is one and it answers."""
    record = read_record(settings.home)
    if record is None or not record.is_alive:
        return None
    try:
        answer = early.get(f"{record.api_url}/healthz", seconds=_ANSWER_SECONDS)
    except early.NoAnswer:
        return None
    return service_at(settings, record.api_url, record) if answer.status == 200 else None


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


class NoTaskYet(Refused):
    """Nobody was named to ask, and the home is as empty as before the first task."""


class ServiceOfOthers(Unreachable):
    """Nobody was named to ask, the home is empty, and we have no token of the service at the usual address."""


def find_service(settings: Settings) -> Service | None:
    """Return the service to talk to; None where there is none, and the records of the home are all there is to ask.

    Raises ``NoTaskYet`` where there are no records either, ``HomeUnusable`` where that cannot be told,
    ``ServiceOfOthers`` where there are none and a service answers whose token is not known, and ``Unreachable`` where a
    service is said to be there that does not answer.
    """
    service = named_service(settings) or embedded_service(settings)
    if service is not None:
        return service
    service, is_ours = default_service(settings), has_records(settings.home)
    if service is not None and service.token is not None:
        return service
    if is_ours:  # also with TASKRUNNER_DATABASE_URL: what a run with it leaves is found by who looks with it
        return None
    if settings.database_url is not None:  # of a service that is run here, and keeps no records in the home
        raise _nobody(settings)
    if service is not None:
        raise ServiceOfOthers(
            f"a service answers at {service.url}, but TASKRUNNER_API_TOKEN is not set; set it to a token of that"
            f" service ({WHERE_TOKENS_ARE}), or start a service of your own with: taskrunner dev"
        )
    require_usable(settings.home)
    raise NoTaskYet(f"there is no task in {settings.home} yet; start one with: taskrunner run 'echo hello'")


def require_service(settings: Settings) -> Service:
    """Return the service that takes tasks and carries them out; raise ``Unreachable`` where there is none."""
    try:
        service = find_service(settings)
    except NoTaskYet:
        service = None
    if service is None:
        raise Unreachable(
            f"no service runs for {settings.home} that would carry out the task; keep one running with: taskrunner"
            " dev, or use taskrunner run, which starts what it needs and stays until the task has ended"
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
