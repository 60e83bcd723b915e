"""What the commands do that ask the task API about tasks."""

import asyncio
import codecs
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from cli import render
from cli.client import ApiClient
from cli.discovery import find_service
from cli.errors import CliError, Unreachable
from cli.follow import EMPTY_FOLDER, uses_empty_folder
from cli.running import build_request, placed
from messages.durations import format_duration
from messages.names import result_branch
from messages.settings import read_settings
from messages.statuses import EventKind, TaskStatus
from messages.views import TaskView

_T = TypeVar("_T")
_RECONNECTS = 10


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
    offset = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character

    def write(piece: bytes) -> None:
        nonlocal offset
        if as_json:
            click.echo(json.dumps({"offset": offset, "text": decoder.decode(piece)}))
        else:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        offset += len(piece)

    async def copy(api: ApiClient) -> bool:
        async for piece in api.output(task_id, offset=offset, follow=follow):
            write(piece)
        task = await api.task(task_id)
        return not follow or (task.status.is_final and (task.session is None or offset >= task.session.output_bytes))

    _until_done(copy, lambda: offset)


def boot_log(task_id: str, follow: bool, as_json: bool) -> None:
    """Print the boot log of a task's workspace, with ``follow`` until the task has ended."""
    after = 0

    async def copy(api: ApiClient) -> bool:
        nonlocal after
        async for entry in api.boot_log(task_id, after=after, follow=follow):
            after = entry.id
            click.echo(entry.model_dump_json() if as_json else render.boot_log_entry(entry))
        return not follow or (await api.task(task_id)).status.is_final

    _until_done(copy, lambda: after)


def events(task_id: str, follow: bool, as_json: bool) -> None:
    """Print a task's events, with ``follow`` until the task has ended."""
    after = 0

    async def copy(api: ApiClient) -> bool:
        nonlocal after
        ended = False
        async for event in api.events(task_id, after=after, follow=follow):
            after = event.id
            click.echo(event.model_dump_json() if as_json else render.event_line(event))
            ended = event.kind is EventKind.TASK_STATUS and TaskStatus(event.current or "queued").is_final
        return ended or not follow

    _until_done(copy, lambda: after)


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


def _until_done(copy: Callable[[ApiClient], Awaitable[bool]], position: Callable[[], int]) -> None:
    """Repeat ``copy``, each time with the service that is there then, until it says that it is done.

    A service that stops ends its streams early, and is waited for; one that never answered is not.
    """
    has_answered, failures = False, 0

    async def watched(api: ApiClient) -> bool:
        nonlocal has_answered
        try:
            return await copy(api)
        finally:
            has_answered = has_answered or api.has_answered

    while True:
        before = position()
        try:
            if call_api(watched):
                return
        except Unreachable:
            if not has_answered or failures >= _RECONNECTS:
                raise
        failures = 0 if position() != before else failures + 1
        time.sleep(min(0.1 * 2**failures, 5.0))
