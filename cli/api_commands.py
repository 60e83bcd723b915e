"""What the commands do that ask the task API about tasks."""

import asyncio
import codecs
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from activities.threads import in_daemon_thread
from cli import render
from cli.client import ApiClient, Disconnected
from cli.discovery import Service, find_again, find_service
from cli.errors import CliError, Unreachable
from cli.feed import TaskFeed
from cli.follow import EMPTY_FOLDER, uses_empty_folder
from cli.running import build_request, placed
from messages.durations import format_duration
from messages.names import result_branch
from messages.settings import read_settings
from messages.views import BootLogEntry, EventView, TaskView

_T = TypeVar("_T")


def call_api(call: Callable[[ApiClient], Awaitable[_T]]) -> _T:
    """Find the service, do ``call`` with a connection to it, and return what it returns."""
    service = find_service(read_settings())

    async def connected() -> _T:
        async with ApiClient(service) as api:
            return await call(api)

    return asyncio.run(connected())


def submit(as_json: bool, env: tuple[str, ...], **options: str | None) -> None:
    """Submit a task and print its id."""
    settings = read_settings()
    request = build_request(env=env, **options)
    task = call_api(lambda api: api.submit(placed(request, settings, api.service)))
    if uses_empty_folder(request):
        render.say(EMPTY_FOLDER)
    try:
        click.echo(task.model_dump_json() if as_json else task.id)
    except OSError as e:
        raise CliError(
            f"the output cannot be written ({e.strerror}), but task {task.id} is submitted and goes on"
        ) from e


def list_tasks(as_json: bool, **filters: str | int | None) -> None:
    """Print a page of tasks."""
    page = call_api(lambda api: api.tasks(**filters))
    if as_json:
        click.echo(page.model_dump_json())
        return
    if page.tasks:
        click.echo(render.task_table(page.tasks))
    else:
        render.say("No tasks.")
    if page.next_cursor:
        render.say(f"More: taskrunner list --cursor {page.next_cursor}")


def show(task_id: str, as_json: bool) -> None:
    """Print one task."""
    task = call_api(lambda api: api.task(task_id))
    click.echo(task.model_dump_json() if as_json else render.task_page(task))


def logs(task_id: str, follow: bool, as_json: bool) -> None:
    """Print a task's output, with ``follow`` until the task has ended and all of it is printed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
    end = 0

    def write(offset: int, piece: bytes, *, final: bool = False) -> None:
        nonlocal end
        if not as_json:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        held = len(decoder.getstate()[0])
        end = offset + len(piece)
        if text := decoder.decode(piece, final):
            click.echo(json.dumps({"offset": offset - held, "text": text}))

    async def copy(api: ApiClient) -> None:
        offset = 0
        async for piece in api.output(task_id):
            write(offset, piece)
            offset += len(piece)

    if follow:
        _follow(task_id, lambda feed: feed.output(write))
    else:
        call_api(copy)
    write(end, b"", final=True)


def boot_log(task_id: str, follow: bool, as_json: bool) -> None:
    """Print the boot log of a task's workspace, with ``follow`` until the task has ended."""

    def show(entry: BootLogEntry) -> None:
        click.echo(entry.model_dump_json() if as_json else render.boot_log_entry(entry))

    async def copy(api: ApiClient) -> None:
        async for entry in api.boot_log(task_id):
            show(entry)

    if follow:
        _follow(task_id, lambda feed: feed.boot_log(show))
    else:
        call_api(copy)


def events(task_id: str, follow: bool, as_json: bool) -> None:
    """Print a task's events, with ``follow`` until the task has ended."""

    def show(event: EventView) -> None:
        click.echo(event.model_dump_json() if as_json else render.event_line(event))

    async def copy(api: ApiClient) -> None:
        async for event in api.events(task_id, follow=False):
            show(event)

    if follow:
        _follow(task_id, lambda feed: feed.events(show))
    else:
        call_api(copy)


def diff(task_id: str, as_json: bool) -> None:
    """Print a task's change."""
    patch = call_api(lambda api: api.diff(task_id))
    if as_json:
        click.echo(json.dumps({"task_id": task_id, "patch": patch.decode("utf-8", "replace")}))
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
    """Ask for a task's cancellation."""
    call_api(lambda api: api.cancel(task_id))
    if as_json:
        click.echo(json.dumps({"task_id": task_id, "cancel_requested": True}))
    else:
        render.say(f"Cancelling {task_id}. Follow it: taskrunner events -f {task_id}")


def list_templates(as_json: bool) -> None:
    """Print the templates that the service knows."""
    found = call_api(lambda api: api.templates())
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

    found = call_api(lambda api: api.template(name))
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


def _follow(task_id: str, work: Callable[[TaskFeed], Awaitable[None]]) -> None:
    """Do ``work`` with the feed of a task, which finds the service again where that goes away meanwhile."""
    settings = read_settings()
    service = find_service(settings)

    async def reconnect() -> Service:
        try:
            return await in_daemon_thread(lambda: find_again(settings, service))
        except Unreachable as e:
            raise Disconnected(str(e)) from e

    async def follow() -> None:
        feed = TaskFeed(service, task_id, reconnect=reconnect)
        try:
            await work(feed)
        finally:
            await feed.close()

    asyncio.run(follow())
