"""Which checks are made, and making them: all at once, none for longer than it may take."""

import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import psutil
from pydantic import ValidationError

from cli.discovery import Service, default_service, named_service, service_at
from cli.doctor import home, postgres, programs, temporal
from cli.doctor.check import Check, Status, broken, not_needed, ok
from cli.doctor.containers import ContainerLook
from cli.doctor.ports import check_ports
from cli.doctor.service import check_service
from cli.home import StackRecord, read_record
from messages.defaults import DEFAULT_API_URL
from messages.settings import Settings
from messages.urls import without_user_info
from messages.validation import first_violation
from workers.temporal_server import DEFAULT_PORT, DEFAULT_UI_PORT

LONGEST_SECONDS = 3.4
"""After which a check that has not ended is reported as broken, and not waited for."""
_ALTOGETHER_SECONDS = 4.6
"""From the start of the process, which on a busy machine takes long to load."""
_AHEAD_SECONDS = 0.4
"""By which a check gives up before it is given up: it can say more."""

_USUAL_PORTS = {
    "api": (8070, "--port"),
    "temporal": (DEFAULT_PORT, "--temporal-port"),
    "ui": (DEFAULT_UI_PORT, "--ui-port"),
}


class Role(StrEnum):
    """What this machine is set up to do."""

    EMBEDDED = "the embedded stack of this home (neither TASKRUNNER_API_URL nor TASKRUNNER_DATABASE_URL is set)"
    CLIENT = "commands that use a service elsewhere"
    SERVICES = "taskrunner worker and taskrunner api (TASKRUNNER_DATABASE_URL is set)"


@dataclass(frozen=True)
class Setup:
    """What is there to be checked: how it is set up, and the stack and the service that belong to it."""

    settings: Settings
    role: Role
    record: StackRecord | None
    service: Service | None


Examination = tuple[str, Callable[[], Check | Sequence[Check]]]
"""A name for where it fails as a whole, and what makes the checks."""


def read_what_can_be() -> tuple[Settings, list[Check]]:
    """Return the settings, without the variables that cannot be used, and a broken check for each of those."""
    wrong: list[Check] = []
    instead: dict[str, object] = {}
    while True:
        try:
            return Settings.from_environment(instead), wrong
        except ValidationError as e:
            violation = first_violation(e)
            name = violation.field.partition(".")[0]
            variable = f"TASKRUNNER_{name.upper()}"
            wrong.append(broken("settings", variable, violation.text, f"correct {variable}, or unset it"))
            instead[name] = {"home": "/nonexistent", "host_id": "localhost"}.get(name)
        except RuntimeError:
            problem = "no home folder of yours can be found"
            wrong.append(broken("settings", "TASKRUNNER_HOME", problem, "export TASKRUNNER_HOME=… (a folder of yours)"))
            instead["home"] = "/nonexistent"


def find_setup(settings: Settings) -> Setup:
    """Return how this machine is set up, as the commands see it (:mod:`cli.discovery`)."""
    record = read_record(settings.home)
    named = named_service(settings)
    if settings.database_url is not None:
        usual = settings.public_url or DEFAULT_API_URL
        return Setup(settings, Role.SERVICES, record, named or service_at(settings, usual))
    if named is not None:
        return Setup(settings, Role.CLIENT, record, named)
    if record is not None and record.is_alive:
        return Setup(settings, Role.EMBEDDED, record, service_at(settings, record.api_url, record))
    if settings.api_token is not None and (service := default_service(settings, seconds=0.5)):
        return Setup(settings, Role.CLIENT, record, service)
    return Setup(settings, Role.EMBEDDED, record, None)


def plan(setup: Setup, asked: programs.Programs, look: ContainerLook, *, docker: bool) -> list[Examination]:
    """Return the checks of a setup, in the order in which they are told."""
    settings, where = setup.settings, setup.settings.home
    chosen: list[Examination] = [
        ("python", programs.check_python),
        ("git", partial(_git, asked, setup.role)),
    ]
    if setup.role is Role.CLIENT:
        chosen += [(name, partial(not_needed, name, "a service elsewhere is used")) for name in _OF_SERVICES]
    else:
        chosen += [
            ("home", partial(home.check_home, where)),
            ("disk", partial(home.check_disk, where)),
            ("keys", partial(home.check_keys, settings)),
            ("templates", partial(home.check_templates, settings.templates)),
            *(_embedded(setup, asked) if setup.role is Role.EMBEDDED else _services(setup, asked.patience_seconds)),
        ]
    chosen.append(("api", partial(_api, setup, asked.patience_seconds)))
    chosen.append(("docker", partial(_docker, look, needed=docker)))
    chosen.append(("containers", partial(_containers, setup, look, needed=docker)))
    chosen.append(("agent-shell", programs.check_shell))
    chosen += [(f"agent-{agent}", partial(programs.check_agent, asked, agent)) for agent in programs.AGENTS]
    return chosen


_OF_SERVICES = ("home", "disk", "keys", "templates", "temporal-cli", "temporal-server", "postgresql", "ports", "stack")


def _git(asked: programs.Programs, role: Role) -> Check:
    check = programs.check_git(asked)
    return check.as_warning() if role is Role.CLIENT else check  # for --repo alone


def _docker(look: ContainerLook, *, needed: bool) -> Check:
    check = look.daemon()
    return check if needed else check.as_not_needed()


def _containers(setup: Setup, look: ContainerLook, *, needed: bool) -> Check:
    if setup.role is Role.CLIENT:
        return not_needed("containers", "a service elsewhere is used")
    if setup.role is Role.SERVICES:
        check = look.of_services(setup.settings)
    else:
        check = look.embedded(setup.settings, setup.record, setup.service)
    return check if needed else check.as_not_needed()


def _embedded(setup: Setup, asked: programs.Programs) -> list[Examination]:
    settings, record = setup.settings, setup.record
    running = record if record is not None and record.is_alive else None
    server = partial(not_needed, "temporal-server", "the stack brings its own, and none runs")
    return [
        ("temporal-cli", partial(temporal.check_cli, asked, settings.temporal_bin)),
        (
            "temporal-server",
            partial(temporal.check_server, running.temporal_address, seconds=asked.patience_seconds)
            if running
            else server,
        ),
        ("postgresql", partial(postgres.check_embedded, asked, settings.home, record)),
        ("ports", partial(check_ports, settings.home, record, _USUAL_PORTS)),
        ("stack", partial(home.check_stack, settings.home, record)),
    ]


def _services(setup: Setup, seconds: float) -> list[Examination]:
    assert setup.settings.database_url is not None
    url = setup.settings.database_url.get_secret_value()
    not_embedded = [
        (name, partial(not_needed, name, "of the embedded stack")) for name in ("temporal-cli", "ports", "stack")
    ]
    return [
        ("temporal-server", partial(temporal.check_server, seconds=seconds)),
        ("postgresql", partial(postgres.check_database, url)),
        *not_embedded,
    ]


def _api(setup: Setup, seconds: float) -> Check:
    if setup.service is None:
        return not_needed("api", "none runs: taskrunner run starts one, taskrunner dev keeps one")
    if setup.role is Role.SERVICES:
        check = check_service(setup.service, start="taskrunner api", seconds=seconds)
        # It may be on another machine, or be started next.
        return check if setup.settings.api_url else check.as_warning()
    if setup.role is Role.EMBEDDED and setup.record is not None:
        return check_service(setup.service, start=f"kill {setup.record.pid} && taskrunner dev", seconds=seconds)
    return check_service(setup.service, start="start it there, or unset TASKRUNNER_API_URL", seconds=seconds)


def run_all(examinations: Sequence[Examination], *, seconds: float = LONGEST_SECONDS) -> list[Check]:
    """Make all checks at once, each in a thread that nobody waits for after ``seconds``; return them in order."""
    results: queue.SimpleQueue[tuple[int, list[Check]]] = queue.SimpleQueue()

    def examine(number: int, name: str, make: Callable[[], Check | Sequence[Check]]) -> None:
        try:
            made = make()
            results.put((number, [made] if isinstance(made, Check) else list(made)))
        except BaseException as e:  # a check that fails must not hide the others
            text = without_user_info(" ".join(str(e).split()))[:300]
            problem = f"the check itself failed: {type(e).__name__}: {text}"
            results.put((number, [broken(name, "not known", problem, "report this as a defect")]))

    for number, (name, make) in enumerate(examinations):
        threading.Thread(target=examine, args=(number, name, make), name=f"check {name}", daemon=True).start()
    checks: dict[int, list[Check]] = {}
    deadline = time.monotonic() + seconds
    while len(checks) < len(examinations):
        try:
            number, made = results.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            break
        checks[number] = made
    for number, (name, _) in enumerate(examinations):
        if number not in checks:
            late = broken(
                name, "not known", f"the check did not end within {seconds:.1f} s", "taskrunner doctor, again"
            )
            checks[number] = [late.as_not_needed() if re.match("agent-|docker|containers", name) else late]
    return [check for number in sorted(checks) for check in checks[number]]


def examine(*, docker: bool) -> list[Check]:
    """Make every check of this environment."""
    settings, wrong = read_what_can_be()
    setup = find_setup(settings)
    since_start = time.time() - psutil.Process().create_time()
    seconds = min(max(_ALTOGETHER_SECONDS - since_start, 1.0), LONGEST_SECONDS)
    asked = programs.Programs(seconds - _AHEAD_SECONDS)
    look = ContainerLook(asked.patience_seconds)
    try:
        made = run_all(plan(setup, asked, look, docker=docker), seconds=seconds)
        return [*wrong, ok("setup", f"for {setup.role.value}"), *without_what_follows(made, settings)]
    finally:
        asked.close()
        look.close()


def without_what_follows(checks: Sequence[Check], settings: Settings) -> list[Check]:
    """Return the checks without what those of a broken home say of the things in it: their advice would be wrong."""
    if not any(check.name == "home" and check.status is Status.BROKEN for check in checks):
        return list(checks)
    inside = {"stack"}
    inside |= set() if settings.keys_file else {"keys"}
    inside |= set() if settings.database_url else {"postgresql"}
    return [
        not_needed(check.name, "not known until the home is mended") if check.name in inside else check
        for check in checks
    ]


def all_is_well(checks: Sequence[Check]) -> bool:
    """Tell whether nothing that is needed is broken."""
    return all(check.status is not Status.BROKEN for check in checks)
