"""What ``taskrunner run`` does: the request from its options, the service or a stack for it, and the way out."""

import contextlib
import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Generator, Sequence
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr, ValidationError

from cli import early
from cli.discovery import Service, embedded_service, service_of_others
from cli.errors import INTERRUPTED, CliError, UsageError
from cli.home import FileLock, Home
from cli.interrupts import TWICE_SECONDS, interrupts_kept, note_signals_to_leave, signals_to_leave
from cli.launch import Progress, hold_stack, is_only_user, join_stack, leave_stack
from cli.repository import check_repository, find_repository, find_with_commit, is_url
from messages.defaults import DATABASE_IS_NOT_OURS
from messages.durations import parse_duration
from messages.names import is_id, random_id
from messages.settings import Settings
from messages.statuses import BackendKind, TaskStatus
from messages.tasks import Repository, TaskRequest
from messages.templates import SUPPORTED_BACKENDS
from messages.validation import first_violation

_SUBMISSION_SECONDS = 30.0
_COURTESY_SECONDS = 5.0


def run(settings: Settings, request: TaskRequest, *, as_json: bool) -> int:
    """Submit ``request``, follow it to its end, and return the exit code."""
    service = service_of_others(settings)
    if service is not None:
        with template_explained(settings, request.template, service):
            return _run_elsewhere(service, placed(request, settings, service), as_json)
    return _run_embedded(settings, request, as_json)


def placed(request: TaskRequest, settings: Settings, service: Service) -> TaskRequest:
    """Return the request with the host that its repository is on: this one.

    A stack of our own home is on this machine anyway, whatever its host is called; any other service has to be told.
    """
    if request.repository is None or service.stack is not None or not request.repository.is_on_host:
        return request
    repository = request.repository.model_copy(update={"host": settings.host_id})
    return request.model_copy(update={"repository": repository})


def build_request(*, env: Sequence[str], **options: str | None) -> TaskRequest:
    """Return the request that the options describe, with the values of the variables that ``env`` names.

    Raises ``UsageError`` for what can be seen to be wrong here.
    """
    task_id, backend, template = options["task_id"], options["backend"], options["template"]
    if task_id is not None and not is_id(task_id):
        raise UsageError(f"--id {task_id!r}: use at most 40 small letters, digits and hyphens, not a hyphen first")
    if backend is not None and backend not in SUPPORTED_BACKENDS:
        raise UsageError(
            f"--backend {backend!r}: there is none of that name here; use one of: {', '.join(SUPPORTED_BACKENDS)}"
        )
    prompt = options["prompt"] or ""
    if prompt == "-":
        prompt = sys.stdin.read()
    repository = _repository(options["repo"], options["ref"], backend, template)
    timeout = _timeout(options["timeout"])
    try:
        return TaskRequest(
            # Known beforehand, so that the submission can be repeated, and cancelled before its answer is here.
            id=task_id or random_id("t"),
            prompt=prompt,
            template=template,
            backend=BackendKind(backend) if backend else None,
            agent=options["agent"],
            repository=repository,
            ref=options["ref"],
            timeout=timeout,
            env=_values(env),
        )
    except ValidationError as e:
        raise UsageError(str(first_violation(e))) from None


def _values(names: Sequence[str]) -> dict[str, SecretStr]:
    for name in names:
        if "=" in name:
            raise UsageError(
                f"--env {name.partition('=')[0]}=...: give the name alone, a value would be seen in the list of"
                " processes; set the variable in your environment, and it is taken from there"
            )
        if not os.environ.get(name):
            raise UsageError(f"--env {name}: it is not set in your environment, or empty; export it, then try again")
    return {name: SecretStr(os.environ[name]) for name in names}


def _timeout(text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        duration = parse_duration(text)
    except ValueError as e:
        raise UsageError(f"--timeout: {e}") from None
    if duration <= timedelta(0):
        raise UsageError(f"--timeout {text}: has to be longer than nothing, for example 90s or 2h")
    return duration


def _repository(repo: str | None, ref: str | None, backend: str | None, template: str | None) -> Repository | None:
    """Return the repository to work on: the one named, else the one around us where the task may want one.

    Who asks for local and nothing else wants a folder to try something in, not what lies around.
    """
    if repo is not None and is_url(repo):
        return _checked("the URL", url=repo)
    if repo is None:
        # A template's own backend may want the repository, so --backend local beside one does not say that none is.
        wants_none = ref is None and {backend, template} - {None} == {BackendKind.LOCAL.value}
        if not wants_none and ref is None and (top := find_with_commit(Path.cwd())) is not None:
            return _checked("the path", path=str(top))
        here = None if wants_none else find_repository(Path.cwd())
        if here is None:
            if BackendKind.WORKTREE in (backend, template) or ref is not None:
                raise UsageError("this is not a git repository; name one with --repo, or use --backend local")
            return None
        repo = str(here)
    try:
        folder = Path(repo).expanduser().absolute()
    except RuntimeError:  # "~nobody"
        raise UsageError(f"--repo {repo}: there is no such user") from None
    return _checked("the path", path=str(check_repository(folder, ref)))


def _checked(what: str, **where: str) -> Repository:
    try:
        return Repository(**where)
    except ValidationError as e:
        raise UsageError(f"--repo: {what} {first_violation(e).text}") from None


@contextlib.contextmanager
def template_explained(settings: Settings, name: str | None, service: Service) -> Generator[None]:
    """Say, where the service does not know the template ``name``, that our own folder has it."""
    try:
        yield
    except CliError as e:
        if name is None or settings.templates is None:
            raise
        from api.templates import TemplateError, TemplateFolder, no_template

        with contextlib.suppress(TemplateError):
            if no_template(name) in str(e) and TemplateFolder(settings.templates).find(name):
                raise type(e)(f"{e}; {_started_without(settings.templates, service)}") from None
        raise


def _started_without(templates: Path, service: Service) -> str:
    text = f"{templates} has it, but the service was started without that folder; "
    if service.stack is None:
        return f"{text}start it again with a TASKRUNNER_TEMPLATES that has it"
    if service.stack.while_used:
        return f"{text}it stops with the last command that uses it: try again then"
    return f"{text}start it again with TASKRUNNER_TEMPLATES={shlex.quote(str(templates))} taskrunner dev"


def _post(service: Service, request: TaskRequest) -> early.Posted | None:
    """Send the request, so that the service works on it while we load what follows the task."""
    return early.post(f"{service.url}/api/tasks", request.body(), service.token, seconds=_SUBMISSION_SECONDS)


def _run_elsewhere(service: Service, request: TaskRequest, as_json: bool) -> int:
    noted = note_signals_to_leave()
    posted = _post(service, request)
    import asyncio

    from cli.display import open_display
    from cli.follow import Follower

    async def reconnect() -> Service:
        return service

    async def follow() -> int:
        follower = Follower(
            service,
            request,
            open_display(as_json=as_json),
            reconnect=reconnect,
            stack_ends_with_us=lambda: False,
            as_json=as_json,
            persist_submission=False,
            posted=posted,
            noted=noted,
        )
        return await follower.run()

    gc.enable()
    return asyncio.run(follow())


def _run_embedded(settings: Settings, request: TaskRequest, as_json: bool) -> int:
    home = Home(settings.home)
    users = FileLock(home.users_lock)
    say = _say
    started = left_at_once = False
    late: list[signal.Signals] = []

    def before_start() -> None:
        _check_here(settings, request)
        if settings.database_url is not None:
            say(f"{DATABASE_IS_NOT_OURS}: this runs on the embedded stack of {home.path}")

    def join() -> Service:
        nonlocal started
        joined = join_stack(settings, home, say, before_start=before_start)
        started = started or joined.started
        return joined.service

    def follow(service: Service) -> int:
        nonlocal say
        noted = note_signals_to_leave()
        posted = _post(service, request)
        import asyncio

        from activities.threads import in_daemon_thread
        from cli.display import open_display
        from cli.follow import Follower

        display = open_display(as_json=as_json)
        say = display.say

        async def reconnect() -> Service:
            return await in_daemon_thread(join)

        async def to_its_end() -> int:
            nonlocal left_at_once, late
            follower = Follower(
                service,
                request,
                display,
                reconnect=reconnect,
                stack_ends_with_us=lambda: started or _would_stop(home),
                as_json=as_json,
                persist_submission=True,
                posted=posted,
                noted=noted,
            )
            try:
                return await follower.run()
            finally:
                left_at_once = follower.left_at_once
                late = note_signals_to_leave()  # one that breaks into the midst of a request may come out as anything
                if not left_at_once and _would_stop(home):
                    await _say_what_is_left(settings, own=request.id)

        gc.enable()
        return asyncio.run(to_its_end())

    for number in signals_to_leave():
        signal.signal(number, signal.default_int_handler)
    interrupted = False
    try:
        with interrupts_kept():
            hold_stack(home, users, say)
            service = join()
        with template_explained(settings, request.template, service):
            code = follow(service)
        interrupted = code == INTERRUPTED
    except KeyboardInterrupt:
        code, interrupted = INTERRUPTED, True
    finally:
        if not left_at_once:  # else the stack notices by itself that nobody is left
            interrupted = _leave(home, users, say, interrupted=interrupted or bool(late))
    return INTERRUPTED if interrupted else code


def _say(text: str) -> None:
    from cli import render

    render.say(text)


def _leave(home: Home, users: FileLock, say: Progress, *, interrupted: bool) -> bool:
    """Leave the stack, with patience for the first interrupt of this run; return whether there was one by now."""
    began = time.monotonic()

    def interrupt(number: int, frame: object) -> None:  # noqa: ARG001
        nonlocal interrupted, began
        is_meant = number == signal.SIGINT or (number == signal.SIGTERM and time.monotonic() > began + TWICE_SECONDS)
        if interrupted and is_meant:
            raise KeyboardInterrupt
        if not interrupted:
            began = time.monotonic()
        interrupted = True
        say("Leaving as soon as the stack has stopped; once more to leave at once")

    for number in signals_to_leave():
        signal.signal(number, interrupt)
    leave_stack(home, users, say)
    return interrupted


async def _say_what_is_left(settings: Settings, *, own: str | None) -> None:
    """Tell of the tasks that wait for another stack, once the one that we stop is gone; never fails."""
    import asyncio

    from cli import render
    from cli.client import ApiClient

    with contextlib.suppress(CliError, TimeoutError):
        service = embedded_service(settings)
        if service is None:
            return
        async with asyncio.timeout(_COURTESY_SECONDS), ApiClient(service) as api:
            pages = [await api.tasks(status=status.value) for status in (TaskStatus.RUNNING, TaskStatus.QUEUED)]
        others = [task.id for page in pages for task in page.tasks if task.id != own]
        if others:
            render.say(render.unfinished(others, other=True))


def _would_stop(home: Home) -> bool:
    """Tell whether the stack is one that a run started, and has no other user than us."""
    record = home.read_record()
    return record is not None and record.while_used and is_only_user(home)


def _check_here(settings: Settings, request: TaskRequest) -> None:
    """Refuse, before a stack is started for it, what the stack would refuse."""
    from api.templates import TemplateError, TemplateFolder, resolve

    try:
        resolve(request, TemplateFolder(settings.templates), host_id=settings.host_id)
    except TemplateError as e:
        raise UsageError(str(e)) from None
