"""The embedded Temporal: the CLI's development server with its UI, on an SQLite file."""

import asyncio
import errno
import logging
import os
import shlex
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from activities.processes import find_carrying
from messages.file_errors import trouble_with
from messages.search_attributes import SEARCH_ATTRIBUTES
from workers.children import STACK_MARKER, Child, end_leftover, last_words
from workers.errors import CannotBeUsed, DiskFull, StackError

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 7233
DEFAULT_UI_PORT = 8233

_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
"""Three to five times as many workflows a second as with SQLite's defaults; a crash of the process loses nothing."""

_IN_USE = "address already in use"
_CHOICES = 5
_PATIENCE_SECONDS = 4.0
"""With a program that may be no Temporal CLI: for its server, and then for its version."""

_DYNAMIC_CONFIG = (
    # The server has one shard, and would read its queues 20 times a second at most: each step of a task that comes
    # while others are under way would wait 40 ms for its worker.
    "history.transferProcessorMaxPollRPS=1000",
    "history.timerProcessorMaxPollRPS=1000",
    # One process needs no partitions of a task queue. With four, three of them pass what nobody waits for on to the
    # first one at 10 a second: of 40 tasks at once, the last would start after 2 s.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    # Each change of a search attribute rewrites a row with 45 indexes: nothing that a task asks of the server costs as
    # much. What is over by the next look is never written, as the release of a task that has just ended. For that,
    # lists of workflows, which people read, are up to a third of a second behind.
    "history.visibilityProcessorMaxPollRPS=3",
    "history.visibilityTaskBatchSize=1000",
)


class TakenPort(NamedTuple):
    """A port that was asked for with ``option`` of ``dev``, for a purpose, and that somebody has."""

    port: int
    purpose: str
    option: str


class PortInUse(StackError):
    """Ports that were asked for are taken: ``taken``, at least one.

    ``instead`` are the options of ``dev`` that ask for others in their place, and for all else that was asked for.
    """

    def __init__(self, *taken: TakenPort, instead: str | None = None) -> None:
        *others, last = (f"{each.port} ({each.purpose})" for each in taken)
        ports = f"{', '.join(others)} and {last}" if others else last
        free = instead or " ".join(f"{each.option} 0" for each in taken)
        these = f"port {ports} is" if len(taken) == 1 else f"ports {ports} are"
        super().__init__(
            f"{these} in use (taskrunner doctor says by whom); take what is free with: taskrunner dev {free}"
        )
        self.taken = taken


class AddressInUse(StackError):
    """Another process took one of the server's ports between its choice and its use."""


class TemporalServer(NamedTuple):
    """A running development server."""

    child: Child
    port: int
    ui_port: int

    @property
    def address(self) -> str:
        """Where clients and workers connect to."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def ui_url(self) -> str:
        """Where its UI is."""
        return f"http://{LOOPBACK}:{self.ui_port}"


def take_port(wanted: int | None, *, preferred: int, purpose: str, option: str) -> socket.socket:
    """Return a socket that listens on a port of the loopback interface: only then nobody else can take it.

    ``wanted``: this port or :class:`PortInUse`; 0 or None: ``preferred`` where it is free, else any.
    """
    for port in [wanted] if wanted else [preferred, 0]:
        taken = socket.socket()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((LOOPBACK, port))
            taken.listen(128)  # two sockets may be bound to one port as long as neither listens
        except OSError as e:
            taken.close()
            if e.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
        else:
            return taken
    raise PortInUse(TakenPort(wanted or preferred, purpose, option))


def choose_port(wanted: int | None, *, preferred: int, purpose: str, option: str) -> int:
    """Return the number of a port that :func:`take_port` would take now."""
    with take_port(wanted, preferred=preferred, purpose=purpose, option=option) as taken:
        return int(taken.getsockname()[1])


async def end_leftovers(home: Path) -> list[int]:
    """End the servers that an earlier stack of ``home`` left behind; return their pids. The caller holds its lock."""
    left = await asyncio.to_thread(find_carrying, STACK_MARKER, str(home))
    for process in left:
        await end_leftover(process, signal.SIGTERM)
    return [process.pid for process in left]


_SQLITE_HEADER = b"SQLite format 3\0"
_HEADER_BYTES = 100
_BROKEN_DATABASE = ("file is not a database", "database disk image is malformed", "no such table")


def broken_database(database: Path, why: str) -> StackError:
    """Return the error for a file of Temporal's that it cannot use; it says what a new one would lack."""
    move = f"mv {shlex.quote(str(database))} {shlex.quote(f'{database}.old')}"
    return CannotBeUsed(
        f"{database} is not a database that Temporal can use ({why}); restore it, or move it away to start with an"
        f" empty one, without the tasks that have not ended: {move}"
    )


def require_sqlite(database: Path) -> None:
    """Raise ``StackError`` where a file is in the way that we may not use, or that is no whole SQLite database."""
    beside = [database.with_name(f"{database.name}{suffix}") for suffix in ("-wal", "-shm")]
    sizes: dict[Path, int] = {}
    header = b""
    for path in (database, *beside):
        try:
            with path.open("r+b") as file:
                header = file.read(_HEADER_BYTES) if path == database else header
                sizes[path] = file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            if path == database:
                return
        except OSError as e:
            raise CannotBeUsed(str(trouble_with(path, e, home=database.parent))) from e
    if not header:
        raise broken_database(database, "it is empty")
    if not header.startswith(_SQLITE_HEADER):
        raise broken_database(database, "it is of another kind")
    # A log may hold what the file lacks: then it is SQLite that knows.
    if not sizes.get(beside[0]) and sizes[database] < _told_size(header):
        raise broken_database(database, f"it is cut off: {sizes[database]} bytes of {_told_size(header)}")


def _told_size(header: bytes) -> int:
    """Return how many bytes the file has by its own header; 0 where an old SQLite has not said it."""
    if len(header) < _HEADER_BYTES or header[24:28] != header[92:96]:
        return 0
    page = int.from_bytes(header[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")


async def _is_temporal(program: Path) -> bool:
    """Tell whether the program says, within some seconds, that it is the Temporal CLI; nothing of it stays."""
    try:
        asked = await Child.start(
            "Temporal",
            [str(program), "--version"],
            cwd=Path("/"),
            env=os.environ,
            log=Path(os.devnull),
            is_ready=lambda line: line.lower().startswith("temporal"),
            timeout=_PATIENCE_SECONDS,
            stop_signal=signal.SIGKILL,
        )
    except StackError:
        return False
    await asked.stop()
    return True


def _no_temporal(program: Path) -> StackError:
    is_named = os.environ.get("TASKRUNNER_TEMPORAL_BIN")
    mend = "correct or unset TASKRUNNER_TEMPORAL_BIN" if is_named else f"move it away: mv {program} {program}.old"
    return StackError(f"{program} is not a Temporal CLI; {mend}")


async def start_temporal_on_chosen_ports(
    program: Path, home: Path, choose: Callable[[], tuple[int, int]]
) -> TemporalServer:
    """Do as :func:`start_temporal` on the ports (server, UI) that ``choose`` returns.

    It is asked again where another process, a stack that starts at the same moment say, took one of them meanwhile.
    """
    for _ in range(_CHOICES - 1):
        port, ui_port = choose()
        try:
            return await start_temporal(program, home, port=port, ui_port=ui_port)
        except AddressInUse as e:
            _log.warning("choosing other ports than %d and %d: %s", port, ui_port, e)
    port, ui_port = choose()
    return await start_temporal(program, home, port=port, ui_port=ui_port)


async def start_temporal(program: Path, home: Path, *, port: int, ui_port: int) -> TemporalServer:
    """Start the server on ``<home>/temporal.db`` (made if missing), with our search attributes; takes about 1 s.

    The caller holds the stack's lock. Raises ``StackError``, :class:`AddressInUse` where other ports may help.
    """
    database = home / "temporal.db"
    require_sqlite(database)
    # Settings for clients would only confuse the server.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    env[STACK_MARKER] = str(home)
    argv = [
        *(str(program), "server", "start-dev"),
        *("--db-filename", "temporal.db"),  # relative to home, so that no character in its path means anything
        *("--ip", LOOPBACK, "--port", str(port), "--ui-port", str(ui_port)),
        *("--log-level", "error"),
        *(part for pragma in _PRAGMAS for part in ("--sqlite-pragma", pragma)),
        *(part for value in _DYNAMIC_CONFIG for part in ("--dynamic-config-value", value)),
        *(part for key in SEARCH_ATTRIBUTES for part in ("--search-attribute", f"{key.name}=Keyword")),
    ]
    refused: list[str] = []

    def is_ready(line: str) -> bool:
        if _IN_USE in line:  # followed by a panic whose stack is longer than what is remembered of the output
            refused.append(line)
        return line.startswith("Server:")

    starting = asyncio.create_task(
        Child.start(
            "Temporal",
            argv,
            cwd=home,
            env=env,
            log=home / "logs" / "temporal.log",
            is_ready=is_ready,
            timeout=60,
            stop_signal=signal.SIGTERM,
        )
    )
    try:
        await asyncio.wait({starting}, timeout=_PATIENCE_SECONDS)
        # Only then: a server that comes up in time is not slowed down by the question.
        if not (starting.done() or await _is_temporal(program) or starting.done()):
            raise _no_temporal(program)
        try:
            child = await starting
        except StackError as e:
            if refused:
                raise AddressInUse(f"Temporal did not start: {last_words(refused)}; start again") from e
            if isinstance(e, DiskFull | CannotBeUsed):
                raise
            if not await _is_temporal(program):
                raise _no_temporal(program) from e
            for words in _BROKEN_DATABASE:
                if words in str(e):
                    raise broken_database(database, f"{words}, see {home}/logs/temporal.log") from e
            raise StackError(
                f"{e}; see {home}/logs/temporal.log, or let TASKRUNNER_TEMPORAL_BIN name another CLI than {program}"
            ) from e
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    return TemporalServer(child, port, ui_port)
