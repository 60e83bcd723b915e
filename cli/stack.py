"""The embedded stack: Temporal and PostgreSQL as children, the API and a worker in this process."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar

from activities.proc import start_time
from activities.threads import in_daemon_thread
from api.templates import TemplateError, TemplateFolder
from cli.errors import UsageError
from cli.home import FileLock, Home, StackRecord, waiting_for_stop
from messages.keys import Keyring, create_keys, load_keys
from messages.settings import Settings
from workers.children import Child
from workers.errors import StackError
from workers.postgres import start_postgres, without_libpq_settings
from workers.temporal_binary import obtain_temporal
from workers.temporal_server import (
    DEFAULT_PORT,
    DEFAULT_UI_PORT,
    LOOPBACK,
    PortInUse,
    TakenPort,
    TemporalServer,
    choose_port,
    end_leftovers,
    start_temporal,
    start_temporal_on_chosen_ports,
    take_port,
)

DEFAULT_API_PORT = 8070
_API, _TEMPORAL, _UI = ("the API", "--port"), ("Temporal", "--temporal-port"), ("Temporal's UI", "--ui-port")
"""What a port is for, and the option of ``dev`` that sets it."""
_LOCK_SECONDS = 20.0
_RESTARTS = 5
_RESTART_WINDOW_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """Ports that were asked for. None: the one of the last stack of this home, else the usual one, else a free one.

    0 is the same without the usual one: what the last stack had is kept where it can be, because workspaces that
    outlived it report there.
    """

    api: int | None = None
    temporal: int | None = None
    ui: int | None = None


class Stack:
    """A stack that serves. ``failed`` ends, with an error, when a part of it cannot be kept alive."""

    def __init__(self, record: StackRecord, failed: "asyncio.Future[None]") -> None:
        self.record = record
        self.failed = failed


def installation_keys(settings: Settings) -> Keyring:
    """Return the keys: of the file that was named, else of the home, where they are made at the first use."""
    return load_keys(settings.keys_path) if settings.keys_file else create_keys(settings.keys_path)


def check_templates(settings: Settings) -> TemplateFolder:
    """Return the templates; raise ``UsageError`` where their folder cannot be read."""
    templates = TemplateFolder(settings.templates)
    try:
        templates.all()
    except TemplateError as e:
        raise UsageError(str(e)) from None
    return templates


@asynccontextmanager
async def running_stack(
    settings: Settings, home: Home, ports: Ports, *, while_used: bool, progress: Callable[[str], None]
) -> AsyncGenerator[Stack]:
    """Run the whole stack of ``home`` for as long as the context lasts; what an earlier one left behind is ended first.

    Raises ``UsageError`` where another one runs on this home, and ``StackError`` where a part does not start.
    """
    async with AsyncExitStack() as parts:
        environ = parts.enter_context(without_libpq_settings())
        lock = FileLock(home.stack_lock)
        parts.callback(lock.close)
        await _take(lock, home, progress if while_used else None)
        earlier = home.read_record()
        keys, templates = installation_keys(settings), check_templates(settings)
        if not while_used:  # a run says what is wrong with the one that it wants
            for file, why in sorted(templates.broken().items()):
                progress(f"The template {file} cannot be used: {why}")
        for pid in await end_leftovers(home.path):
            _log.warning("ended process %d, left behind by an earlier stack", pid)
        _require_ports(ports)
        listeners = _listeners(ports.api, earlier)
        for listener in listeners:
            parts.callback(listener.close)
        program = await obtain_temporal(settings.temporal_bin, progress)

        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        starting = (
            asyncio.create_task(
                _keep_alive(parts, failed, _temporal_starter(program, home, lambda: _temporal_ports(ports, earlier)))
            ),
            asyncio.create_task(_keep_alive(parts, failed, lambda: start_postgres(home.path))),
            # What takes longest to load is loaded while the servers start.
            asyncio.create_task(asyncio.to_thread(import_module, "cli.embedded")),
        )
        await asyncio.gather(*starting, return_exceptions=True)
        temporal, postgres, _ = (starting[0].result(), starting[1].result(), starting[2].result())
        from cli.embedded import running_services

        record = StackRecord(
            pid=os.getpid(),
            started=start_time(os.getpid()) or 0,
            while_used=while_used,
            api_url=f"http://{LOOPBACK}:{listeners[0].getsockname()[1]}",
            ui_url=temporal.ui_url,
            temporal_address=temporal.address,
            database_url=postgres.url,
            host_id=settings.host_id,
        )
        running = running_services(settings, home, record, environ, keys=keys, templates=templates, listeners=listeners)
        for name, task in (await parts.enter_async_context(running)).items():
            _report_end(task, name, failed)
        home.write_record(record)
        yield Stack(record, failed)


async def _take(lock: FileLock, home: Home, wait: Callable[[str], None] | None) -> None:
    """Take the lock of the one stack of this home; an earlier one that ends is waited for where ``wait`` is told so."""
    if lock.try_exclusive():
        return
    if wait is not None:
        wait(waiting_for_stop(home))
        try:
            await asyncio.wait_for(in_daemon_thread(lock.exclusive), _LOCK_SECONDS)
            return
        except TimeoutError:
            pass
    other = home.read_record()
    who = f" (process {other.pid}, {other.api_url})" if other is not None and other.is_alive else ""
    if who and other is not None and other.while_used:
        raise UsageError(
            f"a stack runs on {home.path} already{who}, which a taskrunner run or another command has started; it stops"
            " with the last command that uses it: use it until then, start dev when no task runs any more (taskrunner"
            " list), or set another TASKRUNNER_HOME"
        )
    raise UsageError(f"a stack runs on {home.path} already{who}; use it, stop it, or set another TASKRUNNER_HOME")


def _require_ports(ports: Ports) -> None:
    """Raise ``PortInUse`` for all ports that were asked for and are taken, before anything is started."""
    wanted = (
        (ports.api, DEFAULT_API_PORT, *_API),
        (ports.temporal, DEFAULT_PORT, *_TEMPORAL),
        (ports.ui, DEFAULT_UI_PORT, *_UI),
    )
    taken: list[TakenPort] = []
    instead: list[str] = []
    for port, usual, purpose, option in wanted:
        try:
            choose_port(port, preferred=0, purpose=purpose, option=option)
            instead += [f"{option} {port}"] if port not in {None, usual} else []
        except PortInUse as e:
            taken += e.taken
            instead.append(f"{option} 0")
    if taken:
        raise PortInUse(*taken, instead=" ".join(instead))


def _listeners(wanted: int | None, earlier: StackRecord | None) -> list[socket.socket]:
    """Return the sockets of the API: its own, and the last stack's, where workspaces that outlived it report."""
    preferred = _preferred(wanted, earlier and earlier.api_url, DEFAULT_API_PORT)
    listeners = [take_port(wanted, preferred=preferred, purpose=_API[0], option=_API[1])]
    before = _port_of(earlier.api_url) if earlier else 0
    if before not in {0, listeners[0].getsockname()[1]}:
        with contextlib.suppress(PortInUse):
            listeners.append(take_port(before, preferred=before, purpose=_API[0], option=_API[1]))
    return listeners


def _temporal_ports(ports: Ports, earlier: StackRecord | None) -> tuple[int, int]:
    """Return the ports of Temporal and of its UI as they can be had now; raise ``PortInUse``."""
    port = choose_port(
        ports.temporal,
        preferred=_preferred(ports.temporal, earlier and earlier.temporal_address, DEFAULT_PORT),
        purpose=_TEMPORAL[0],
        option=_TEMPORAL[1],
    )
    ui_port = choose_port(
        ports.ui,
        preferred=_preferred(ports.ui, earlier and earlier.ui_url, DEFAULT_UI_PORT),
        purpose=_UI[0],
        option=_UI[1],
    )
    return port, ui_port


def _temporal_starter(
    program: Path, home: Home, choose: Callable[[], tuple[int, int]]
) -> Callable[[], Awaitable[TemporalServer]]:
    """Return what starts Temporal on chosen ports, and later again on the same ones, which others know by then."""
    first: TemporalServer | None = None

    async def start() -> TemporalServer:
        nonlocal first
        if first is None:
            first = await start_temporal_on_chosen_ports(program, home.path, choose)
            return first
        return await start_temporal(program, home.path, port=first.port, ui_port=first.ui_port)

    return start


def _preferred(wanted: int | None, earlier: str | None, usual: int) -> int:
    """Return the port to try first where none is demanded: the last stack's, else the usual one, else (0) any."""
    return (_port_of(earlier) if earlier else 0) or (0 if wanted == 0 else usual)


def _port_of(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() and int(port) < 65536 else 0


class _Server(Protocol):
    @property
    def child(self) -> Child: ...


_S = TypeVar("_S", bound=_Server)


async def _keep_alive(parts: AsyncExitStack, failed: "asyncio.Future[None]", start: Callable[[], Awaitable[_S]]) -> _S:
    """Start a server, and start it again whenever it ends by itself; it is stopped with ``parts``."""
    first = await start()
    child = first.child

    async def watch() -> None:
        nonlocal child
        restarts: list[float] = []
        while True:
            await child.wait()
            _log.error("%s ended by itself (exit code %s): %s", child.name, child.process.returncode, child.last_words)
            now = time.monotonic()
            restarts = [at for at in restarts if at > now - _RESTART_WINDOW_SECONDS] + [now]
            if len(restarts) > _RESTARTS:
                raise StackError(f"{child.name} keeps ending: {child.last_words}")
            child = (await start()).child
            _log.warning("%s was started again", child.name)

    watching = asyncio.create_task(watch(), name=f"watch {child.name}")
    _report_end(watching, child.name, failed)

    async def stop() -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await child.stop()

    parts.push_async_callback(stop)
    return first


def _report_end(part: "asyncio.Task[None]", name: str, failed: "asyncio.Future[None]") -> None:
    """Let ``failed`` fail when ``part`` ends without being cancelled."""

    def report(ended: "asyncio.Task[None]") -> None:
        if ended.cancelled() or failed.done():
            return
        error = ended.exception()
        failed.set_exception(error or StackError(f"{name} ended by itself"))
        failed.exception()  # seen: nobody waits for it while the stack stops

    part.add_done_callback(report)
