"""Answers from the records of a home on which no stack runs: its PostgreSQL and the API, for one question.

Neither Temporal nor a worker is started: a question is answered in a third of the time that a whole stack takes, and
tasks that an earlier stack left unfinished stay as they are.
"""

import asyncio
import functools
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TypeVar

import httpx

from activities.threads import in_daemon_thread
from cli import render
from cli.client import ApiClient
from cli.discovery import Service, embedded_service
from cli.errors import Unreachable
from cli.home import FileLock, Home, waiting_for_start, waiting_for_stop
from messages.defaults import DATABASE_IS_NOT_OURS
from messages.keys import passing_keys
from messages.settings import Settings
from workers.postgres import start_postgres, without_libpq_settings

_STOP_SECONDS = 10.0
"""How long a stack that is just stopping is waited for."""
_NOBODY = "127.0.0.1:0"
"""An address that nothing can ever listen on."""

_T = TypeVar("_T")


def ask_records(settings: Settings, call: Callable[[ApiClient], Awaitable[_T]]) -> _T:
    """Do ``call``, which reads and follows nothing, with the API of the home's records, and return what it returns.

    A stack that has come up meanwhile answers in their place. Raises ``Unreachable`` where one is in the way that does
    not, and ``StackError`` where PostgreSQL does not start.
    """

    async def ask() -> _T:
        async with _opened(settings) as api:
            return await call(api)

    return asyncio.run(ask())


@functools.cache
def say_on_terminal(text: str) -> None:
    """Say what takes time, once, to a person who waits for it; programs need not know."""
    if sys.stderr.isatty():
        render.say(text)


@functools.cache
def _say(text: str) -> None:
    """Say it once, to programs too: the answer may not be the one that they expect."""
    render.say(text)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncGenerator[ApiClient]:
    home = Home(settings.home)
    async with AsyncExitStack() as parts:
        # As a stack that starts, so that there is never more than one PostgreSQL; whoever comes next waits for our end.
        start, stack = FileLock(home.start_lock), FileLock(home.stack_lock)
        parts.callback(start.close)
        parts.callback(stack.close)
        if not start.try_exclusive():
            say_on_terminal(waiting_for_start(home))
            await in_daemon_thread(start.exclusive)
        if service := embedded_service(settings):
            start.close()
            yield await parts.enter_async_context(ApiClient(service))
            return
        try:
            if not stack.try_exclusive():
                say_on_terminal(waiting_for_stop(home))
                await asyncio.wait_for(in_daemon_thread(stack.exclusive), _STOP_SECONDS)
        except TimeoutError:
            raise Unreachable(_in_the_way(home)) from None
        if settings.database_url is None:
            say_on_terminal(f"No service runs: looking it up in {home.path}")
        else:
            _say(f"No service answers, and {DATABASE_IS_NOT_OURS}: looking it up in {home.path}")
        parts.enter_context(without_libpq_settings())
        # What takes longest to load is loaded while the server starts.
        loading = asyncio.create_task(asyncio.to_thread(import_module, "api.app"))
        try:
            postgres = await start_postgres(home.path)
        finally:
            await asyncio.gather(loading, return_exceptions=True)
        parts.push_async_callback(postgres.child.stop)
        yield await parts.enter_async_context(_api(settings, home, postgres.url))


def _in_the_way(home: Home) -> str:
    record = home.read_record()
    if record is None or not record.is_alive:
        return f"another process uses {home.path} and does not answer; see {home.log}"
    return (
        f"the stack on {home.path} (process {record.pid}) does not answer at {record.api_url}; stop it with:"
        f" kill {record.pid}"
    )


@asynccontextmanager
async def _api(settings: Settings, home: Home, database_url: str) -> AsyncGenerator[ApiClient]:
    from api.app import create_app
    from api.dependencies import ApiDependencies
    from api.templates import TemplateFolder
    from store.registry import Registry
    from store.schema import migrate
    from workers.client import connect

    await asyncio.to_thread(migrate, database_url)
    token = home.make_token()
    async with Registry.connect(database_url) as registry:
        await registry.tokens.add("embedded", token)
        app = create_app(
            ApiDependencies(
                registry=registry,
                temporal=await connect(_NOBODY, lazy=True),
                keys=passing_keys(),  # no callback comes, and nothing is sealed: broken keys are no hindrance
                templates=TemplateFolder(settings.templates),
                host_id=settings.host_id,
            )
        )
        # Over no socket: nobody else may come to rely on it. Without the app's lifespan nothing is delivered either.
        service = Service("http://localhost", token)
        async with ApiClient(service, transport=httpx.ASGITransport(app)) as api:
            yield api
