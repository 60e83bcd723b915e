"""The commands that are processes: how they start, say where they are, and end."""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from activities.threads import in_daemon_thread
from cli import render
from cli.errors import Unreachable, UsageError
from cli.home import FileLock, Home, StackRecord, told_of_home, waiting_for_start
from cli.main import VERSION, explain
from cli.stack import Ports, check_templates, installation_keys, running_stack
from messages.defaults import DEFAULT_API_URL, token_path
from messages.settings import Settings, SettingsError
from messages.urls import is_loopback, without_user_info
from workers.errors import ASK_THE_DOCTOR

_LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_REPEAT_SECONDS = 60.0
"""How often the log says that PostgreSQL is away."""
_BLOCKING_CALLS = 64
"""How many blocking calls (file trees, ``/proc``) run at once. asyncio's own limit goes by the number of CPUs, and is 6
where there are two: a few large trees being removed would hold up every other task of the host."""


def run_until_signalled(work: Coroutine[Any, Any, None]) -> int:
    """Run ``work`` to its end or to the first signal that asks for it; what it opened is closed either way."""

    async def main() -> None:
        task = asyncio.ensure_future(work)
        told = False

        def end(_: signal.Signals) -> None:
            nonlocal told
            if not told:  # cancelling twice would cut its cleaning up short
                told = True
                task.cancel()

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_BLOCKING_CALLS, thread_name_prefix="blocking"))
        for number in _SIGNALS:
            loop.add_signal_handler(number, end, number)
        try:
            await task
        except asyncio.CancelledError:
            if not told:
                raise

    asyncio.run(main())
    return 0


def dev(settings: Settings, ports: Ports, *, as_json: bool) -> int:
    """Be the embedded stack in the foreground."""
    home = Home(settings.home)
    start = FileLock(home.start_lock)
    began = time.monotonic()
    try:
        if not start.try_exclusive():
            render.say(waiting_for_start(home))
            start.exclusive()
        _log_to_file(home)

        async def serve() -> None:
            async with running_stack(settings, home, ports, while_used=False, progress=render.say) as stack:
                start.close()
                _say_where(stack.record, home.path, time.monotonic() - began, as_json)
                try:
                    await stack.failed
                finally:
                    render.say("Stopping. Tasks that run go on at the next start.")

        return run_until_signalled(serve())
    finally:
        start.close()


def dev_while_used(settings: Settings, *, report_fd: int, start_lock_fd: int) -> int:
    """Be the stack that a ``run`` starts: report to it how the start goes, and end when no run is left.

    Reports are lines of JSON: ``{"progress": text}``, then ``{"ready": true}`` or ``{"error": text, "exit_code": n}``.
    """
    for inherited in (report_fd, start_lock_fd):
        os.set_inheritable(inherited, False)

    def report(**content: str | int) -> None:
        with contextlib.suppress(OSError):  # the starter is gone, and nobody else wants to know
            os.write(report_fd, json.dumps(content).encode() + b"\n")

    async def serve(home: Home) -> None:
        users = FileLock(home.users_lock)

        def progress(text: str) -> None:
            report(progress=text)

        async with running_stack(settings, home, Ports(), while_used=True, progress=progress) as stack:
            report(ready=True)
            os.close(start_lock_fd)
            # Granted when no run holds it any more, and kept to our end, so that a new run waits for that.
            unused = asyncio.ensure_future(in_daemon_thread(users.exclusive))
            await asyncio.wait({unused, stack.failed}, return_when=asyncio.FIRST_COMPLETED)
            if stack.failed.done():
                stack.failed.result()

    try:
        home = Home(settings.home)
        _log_to_file(home)
        return run_until_signalled(serve(home))
    except Exception as e:
        text, code = explain(e)
        logging.getLogger(__name__).exception("the stack ends: %s", text)
        report(error=text, exit_code=code)
        return code


def worker(settings: Settings) -> int:
    """Be a worker of this host."""
    from store.registry import Registry
    from workers.client import connect
    from workers.worker import HostSettings, running_worker

    database_url = _database_url(settings)
    home = Home(settings.home)
    keys = installation_keys(settings)
    _log_to_stderr()
    _check_schema(database_url)

    async def serve() -> None:
        api_url = settings.public_url or settings.api_url or DEFAULT_API_URL
        host = HostSettings(
            host_id=settings.host_id,
            home=home.path,
            api_url=api_url,
            # Loopback, the default, is no way for others.
            public_url=settings.public_url or (settings.api_url if not is_loopback(api_url) else None),
        )
        client = await connect()
        async with (
            Registry.connect(database_url) as registry,
            running_worker(client, registry, keys, host) as task,
        ):
            logging.getLogger(__name__).info(
                "worker of host %s is ready; workspaces report to %s", settings.host_id, without_user_info(api_url)
            )
            await task

    return run_until_signalled(serve())


def api(settings: Settings, *, host: str, port: int, ui_url: str | None) -> int:
    """Be the API."""
    from api import server
    from api.auth import accepting
    from api.dependencies import ApiDependencies
    from store.registry import Registry
    from workers.client import connect

    database_url = _database_url(settings)
    home = Home(settings.home)
    keys, templates = installation_keys(settings), check_templates(settings)
    token = settings.api_token.get_secret_value() if settings.api_token else home.make_token()
    bound = _bind(host, port)
    _log_to_stderr()
    _check_schema(database_url)

    async def serve() -> None:
        async with (
            Registry.connect(database_url) as registry,
            accepting(registry, f"api-{settings.host_id}", token),
        ):
            given = ApiDependencies(
                registry=registry,
                temporal=await connect(lazy=True),
                keys=keys,
                templates=templates,
                host_id=settings.host_id,
                ui_url=ui_url,
                allowed_hosts=settings.host_names,
            )
            async with server.running(given, sock=bound) as running:
                logging.getLogger(__name__).info("the API answers at %s", running.url)
                # Cancelling us must not cancel it: it is told to stop, and ends what is under way.
                await asyncio.wait({running.task})

    with bound:
        return run_until_signalled(serve())


def migrate_database(settings: Settings, *, as_json: bool) -> int:
    """Apply the missing migrations."""
    from store.errors import RegistryUnavailable
    from store.schema import migrate

    try:
        applied = migrate(_database_url(settings))
    except RegistryUnavailable as e:
        raise Unreachable(f"{_is_away(e)}; {ASK_THE_DOCTOR}") from e
    if as_json:
        click.echo(json.dumps({"applied": applied}))
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "Nothing to do: the database is up to date.")
    return 0


def _check_schema(database_url: str) -> None:
    """Refuse a database of another release; one that is away is waited for by whoever needs it."""
    from store.errors import RegistryUnavailable
    from store.schema import check_schema

    try:
        check_schema(database_url)
    except RegistryUnavailable as e:
        logging.getLogger(__name__).warning("whether the database is of this release is not known: %s", _is_away(e))


def _is_away(error: Exception) -> str:
    """Return why PostgreSQL cannot be reached, in one line, and what to do; libpq ends with a question of its own."""
    reason = re.sub(r" Is the server running [^?]*\?", "", " ".join(str(error).split()))
    return f"{reason}; check TASKRUNNER_DATABASE_URL, and whether PostgreSQL runs there"


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise UsageError(
            "TASKRUNNER_DATABASE_URL is not set; name the PostgreSQL database, postgresql://user@host/name"
        )
    from store.conninfo import check_database_url
    from store.errors import InvalidDatabaseUrl

    url = settings.database_url.get_secret_value()
    try:
        check_database_url(url)
    except InvalidDatabaseUrl as e:
        raise SettingsError(f"TASKRUNNER_DATABASE_URL: {e}") from None
    return url


def _bind(host: str, port: int) -> socket.socket:
    from api import server

    try:
        return server.bind(host, port)
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UsageError(f"{host} port {port} cannot be had ({reason}); choose another with --host and --port") from e


def _say_where(record: StackRecord, home: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        click.echo(record.model_dump_json())
    else:
        where = render.fields(
            (
                ("API", f"{record.api_url}  (documentation: {record.api_url}/docs)"),
                ("API token", f"in {token_path(home)}"),
                ("Temporal's UI", record.ui_url),
                ("Temporal", record.temporal_address),
                ("state and logs", str(home)),
            ),
            indent="  ",
        )
        click.echo(
            f"taskrunner {VERSION} is ready after {seconds:.1f} s. Ctrl-C stops it.\n\n{where}\n\n"
            "Try in another terminal: taskrunner run 'echo hello'"
        )
    sys.stdout.flush()


def _log_to_file(home: Home) -> None:
    with told_of_home(home.path, home.log):
        logging.basicConfig(filename=home.log, level=logging.INFO, format=_LOG_FORMAT, force=True)
    _quieten()


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_LOG_FORMAT, force=True)
    _quieten()


def _quieten() -> None:
    for name in ("httpx", "httpcore", "uvicorn.error"):  # a line for each request, or each start
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("psycopg.pool").addFilter(_once_a_minute())  # several for each second of an outage


def _once_a_minute() -> Callable[[logging.LogRecord], bool]:
    last = 0.0

    def passes(record: logging.LogRecord) -> bool:
        nonlocal last
        if record.levelno < logging.WARNING:
            return True
        if record.created - last < _REPEAT_SECONDS:
            return False
        last = record.created
        return True

    return passes
