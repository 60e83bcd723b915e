"""What the commands do that ask the task API about tasks."""

import asyncio
import base64
import codecs
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from activities.threads import in_daemon_thread
from api.templates import TemplateError, TemplateFolder, details_of, list_of
from cli import offline, render
from cli.client import ApiClient, Disconnected
from cli.discovery import NoTaskYet, Service, ServiceOfOthers, find_again, find_service, require_service
from cli.errors import CliError, Refused, Unreachable, UsageError
from cli.feed import TaskFeed
from cli.follow import empty_folder_note
from cli.home import HomeUnusable
from cli.launch import joined_stack
from cli.running import build_request, placed, template_explained
from messages.durations import format_duration
from messages.names import result_branch
from messages.settings import Settings, read_settings
from messages.statuses import TaskStatus
from messages.views import BootLogEntry, EventView, TaskPage, TaskSummary, TaskView

_T = TypeVar("_T")


def call_api(call: Callable[[ApiClient], Awaitable[_T]]) -> _T:
    """Find the service, do ``call`` with a connection to it, and return what it returns.

    Where no service runs, the home's records answer: enough for what only reads.
    """
    return _call_or_read(call)[0]


def _call_or_read(call: Callable[[ApiClient], Awaitable[_T]]) -> tuple[_T, bool]:
    """Do as :func:`call_api`, and tell whether a service runs."""
    settings = read_settings()
    service = find_service(settings)
    if service is None:
        return offline.ask_records(settings, call), False
    return _call(service, call), True


def _call(service: Service, call: Callable[[ApiClient], Awaitable[_T]]) -> _T:
    async def connected() -> _T:
        async with ApiClient(service) as api:
            return await call(api)

    return asyncio.run(connected())


def submit(as_json: bool, env: tuple[str, ...], **options: str | None) -> None:
    """Submit a task and print its id."""
    settings = read_settings()
    request = build_request(env=env, **options)
    service = require_service(settings)
    with template_explained(settings, request.template, service):
        task = _call(service, lambda api: api.submit(placed(request, settings, service)))
    if note := empty_folder_note(request):
        render.say(note)
    try:
        click.echo(task.model_dump_json() if as_json else task.id)
    except OSError as e:
        raise CliError(
            f"the output cannot be written ({e.strerror}), but task {task.id} is submitted and goes on"
        ) from e


def list_tasks(as_json: bool, **filters: str | int | None) -> None:
    """Print a page of tasks."""
    try:
        page, runs = _call_or_read(lambda api: api.tasks(**filters))
    except NoTaskYet as e:
        page, runs = TaskPage(tasks=[]), False
        if not as_json:
            render.say(f"{str(e)[:1].upper()}{str(e)[1:]}")
            return
    except UsageError as e:
        if "parameter cursor:" not in str(e):
            raise
        raise UsageError(
            f"--cursor {filters['cursor']!r}: no earlier list gave it; leave it out to begin with the newest"
        ) from None
    if as_json:
        click.echo(page.model_dump_json())
        return
    if page.tasks:
        click.echo(render.task_table(page.tasks))
    else:
        render.say("No tasks.")
    if page.next_cursor:
        render.say(f"More: taskrunner list --cursor {page.next_cursor}")
    if not runs:
        _say_what_waits(page.tasks)


def show(task_id: str, as_json: bool) -> None:
    """Print one task."""
    task, runs = _call_or_read(lambda api: api.task(task_id))
    click.echo(task.model_dump_json() if as_json else render.task_page(task))
    if not (runs or as_json):
        _say_what_waits([task])


def _say_what_waits(tasks: Sequence[TaskSummary]) -> None:
    """Tell of tasks that are shown as running while nothing runs them."""
    if waiting := [task.id for task in tasks if not task.status.is_final]:
        render.say(render.unfinished(waiting))


def logs(task_id: str, follow: bool, as_json: bool) -> None:
    """Print a task's output, with ``follow`` until the task has ended and all of it is printed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
    end = 0
    is_empty = True
    silent: TaskView | None = None

    def write(offset: int, piece: bytes, *, final: bool = False) -> None:
        nonlocal end, is_empty
        is_empty = is_empty and not piece
        if not as_json:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        held = len(decoder.getstate()[0])
        end = offset + len(piece)
        if text := decoder.decode(piece, final):
            click.echo(json.dumps({"offset": offset - held, "text": text}))

    async def pieces(api: ApiClient) -> AsyncGenerator[tuple[int, bytes]]:
        offset = 0
        async with aclosing(api.output(task_id)) as found:
            async for piece in found:
                yield offset, piece
                offset += len(piece)
        if offset == 0:
            await ask_why(api)

    async def ask_why(api: ApiClient) -> None:
        nonlocal silent
        if sys.stderr.isatty():  # a person, who would wonder
            silent = await api.task(task_id)

    async def output(feed: TaskFeed) -> None:
        await feed.output(write)
        if is_empty:
            await feed.ask(ask_why)

    if not (follow and _follow(task_id, output)):
        _show_all(pieces, lambda part: write(*part))
    write(end, b"", final=True)
    if silent:
        render.say(render.no_output(silent))


def boot_log(task_id: str, follow: bool, as_json: bool) -> None:
    """Print the boot log of a task's workspace, with ``follow`` until the task has ended."""

    def show(entry: BootLogEntry) -> None:
        click.echo(entry.model_dump_json() if as_json else render.boot_log_entry(entry))

    if not (follow and _follow(task_id, lambda feed: feed.boot_log(show))):
        _show_all(lambda api: api.boot_log(task_id), show)


def events(task_id: str, follow: bool, as_json: bool) -> None:
    """Print a task's events, with ``follow`` until the task has ended."""

    def show(event: EventView) -> None:
        click.echo(event.model_dump_json() if as_json else render.event_line(event))

    if not (follow and _follow(task_id, lambda feed: feed.events(show))):
        _show_all(lambda api: api.events(task_id, follow=False), show)


def diff(task_id: str, as_json: bool) -> None:
    """Print a task's change."""
    patch = call_api(lambda api: api.diff(task_id))
    if as_json:
        text = encoded = None
        try:
            text = patch.decode()
        except UnicodeDecodeError:  # names and text files too may be in any encoding
            encoded = base64.b64encode(patch).decode()
        click.echo(json.dumps({"task_id": task_id, "patch": text, "patch_base64": encoded}))
    else:
        sys.stdout.buffer.write(patch)
        sys.stdout.buffer.flush()


def save_bundle(task_id: str, file: Path, as_json: bool) -> None:
    """Write the git bundle that holds a task's change to ``file``, and say what to do with it."""

    async def get(api: ApiClient) -> tuple[bytes, TaskView]:
        return await api.bundle(task_id), await api.task(task_id)

    content, task = call_api(get)
    try:
        file.write_bytes(content)
    except OSError as e:
        raise CliError(f"{file} cannot be written: {e.strerror}; name another file") from e
    branch = task.result.branch if task.result else result_branch(task_id)
    if as_json:
        click.echo(json.dumps({"task_id": task_id, "bundle": str(file), "branch": branch, "bytes": len(content)}))
    else:
        render.say(f"Saved {len(content)} bytes. In a repository: {render.fetch(str(file), branch)}")


def cancel(task_id: str, as_json: bool) -> None:
    """Ask for a task's cancellation; where no service runs, have one until the task has ended."""
    settings = read_settings()
    service = find_service(settings)
    if service is not None:
        _call(service, lambda api: api.cancel(task_id))
        said = f"Cancelling {task_id}. Follow it: taskrunner events -f {task_id}"
    else:
        task = _cancel_with_stack(settings, task_id)
        if task.status is not TaskStatus.CANCELLED:
            raise Refused(f"task {task_id} was about to end and is {task.status.value}; see: taskrunner show {task_id}")
        if task.workspace and task.workspace.leak_suspected_at:
            raise Refused(f"task {task_id} is cancelled, but its workspace may still be there: {task.error}")
        said = f"Task {task_id} is cancelled, and its workspace taken down."
    if as_json:
        click.echo(json.dumps({"task_id": task_id, "cancel_requested": True}))
    else:
        render.say(said)


def _cancel_with_stack(settings: Settings, task_id: str) -> TaskView:
    """Cancel a task that was left unfinished, and return it as it has ended: it may have been about to."""
    ended: list[TaskView] = []

    async def refuse_what_has_ended(api: ApiClient) -> None:
        if (await api.task(task_id)).status.is_final:
            await api.cancel(task_id)  # says so

    async def cancel_and_wait(feed: TaskFeed) -> None:
        await feed.ask(lambda api: api.cancel(task_id))
        await feed.events(lambda _: None)
        ended.append(await feed.ask(lambda api: api.task(task_id)))

    offline.ask_records(settings, refuse_what_has_ended)
    with joined_stack(settings, offline.say_on_terminal) as service:
        _feed(settings, service, task_id, cancel_and_wait)
    return ended[0]


def list_templates(as_json: bool) -> None:
    """Print the templates that the service knows; where none runs, those that one started here would."""
    found = _ask_templates(lambda api: api.templates(), lambda own: list_of(own).model_dump(mode="json"))
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [(t["name"], t["backend"], t["readiness"], t["runtime"] or "-") for t in found["templates"]]
    click.echo(render.table(("NAME", "BACKEND", "READINESS", "RUNTIME"), rows))
    for template in found["templates"]:
        if warning := template.get("warning"):  # an older service sends none
            render.say(f"warning: {template['name']}: {warning}")
    for file, why in found["broken"].items():
        render.say(f"not usable: {file}: {why}")


def show_template(name: str, as_json: bool) -> None:
    """Print one template, with the provision timeout that the service would give it."""
    import yaml
    from pydantic import TypeAdapter

    found = _ask_templates(
        lambda api: api.template(name), lambda own: details_of(own, name, os.environ).model_dump(mode="json"), name
    )
    if as_json:
        click.echo(json.dumps(found))
        return
    content: dict[str, Any] = found["template"]
    for field in ("session_timeout", "heartbeat_interval"):  # JSON carries them as ISO 8601
        content[field] = format_duration(TypeAdapter(timedelta).validate_python(content[field]))
    click.echo(yaml.safe_dump(content, sort_keys=False).rstrip())
    click.echo(f"# readiness: {found['readiness']}")
    click.echo(f"# provision timeout: {found['provision_timeout_seconds']} s ({found['provision_timeout_rule']})")
    if warning := found.get("warning"):
        click.echo(f"# warning: {warning}")


def _ask_templates(
    call: Callable[[ApiClient], Awaitable[dict[str, Any]]],
    look_up: Callable[[TemplateFolder], dict[str, Any]],
    name: str | None = None,
) -> dict[str, Any]:
    settings = read_settings()
    try:
        service = find_service(settings)
    except (NoTaskYet, ServiceOfOthers, HomeUnusable):  # templates are no part of it
        service = None
    if service is not None:
        with template_explained(settings, name, service):
            return _call(service, call)
    from cli.stack import check_templates

    try:
        return look_up(check_templates(settings))
    except TemplateError as e:
        raise Refused(str(e)) from None


def _show_all(read: Callable[[ApiClient], AsyncGenerator[_T]], show: Callable[[_T], None]) -> None:
    """Show each part as it is read; of the home's records when all of it is read, so that no reader holds them up."""
    settings = read_settings()
    service = find_service(settings)

    async def show_as_read(api: ApiClient) -> None:
        async with aclosing(read(api)) as parts:
            async for part in parts:
                show(part)

    async def collect(api: ApiClient) -> list[_T]:
        async with aclosing(read(api)) as parts:
            return [part async for part in parts]

    if service is not None:
        _call(service, show_as_read)
        return
    for part in offline.ask_records(settings, collect):
        show(part)


def _follow(task_id: str, work: Callable[[TaskFeed], Awaitable[None]]) -> bool:
    """Do ``work`` with the feed of a task, which finds the service again where that goes away meanwhile.

    Where no service runs, a stack is started for a task that goes on. Returns False, and does nothing, where the task
    has ended, so that the records have all of it.
    """
    settings = read_settings()
    service = find_service(settings)
    if service is not None:
        _feed(settings, service, task_id, work)
        return True
    if offline.ask_records(settings, lambda api: api.task(task_id)).status.is_final:
        return False
    with joined_stack(settings, offline.say_on_terminal) as started:
        _feed(settings, started, task_id, work)
    return True


def _feed(settings: Settings, service: Service, task_id: str, work: Callable[[TaskFeed], Awaitable[None]]) -> None:
    async def reconnect() -> Service:
        try:
            return await in_daemon_thread(lambda: find_again(settings, service))
        except Unreachable as e:
            raise Disconnected(str(e)) from e

    async def follow() -> None:
        feed = TaskFeed(service, task_id, reconnect=reconnect, say=render.say)
        try:
            await work(feed)
        finally:
            await feed.close()

    asyncio.run(follow())
