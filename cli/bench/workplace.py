"""Where the bench works: a home, a repository and an environment of its own, and a stack that ends with it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

from temporalio.client import Client

from activities.files import remove_tree
from cli.discovery import Service
from cli.errors import CliError
from cli.home import read_record, read_token
from workers.children import Child
from workers.client import connect

PROGRAM = (sys.executable, "-P", "-m", "cli.main")
CALLBACK_TEMPLATE = "bench-callback"

_TEMPLATE = f"{{name: {CALLBACK_TEMPLATE}, backend: local, readiness: callback}}\n"
_KEPT = {"TASKRUNNER_TEMPORAL_BIN"}
_NOT_OURS = ("TASKRUNNER_", "TEMPORAL_", "GIT_", "PG")
_START_SECONDS = 600.0
_GIT_IDENTITY = ("-c", "user.name=taskrunner", "-c", "user.email=taskrunner@localhost", "-c", "commit.gpgSign=false")


class Workplace:
    """One folder for everything that the bench makes. ``environ`` is what its commands run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.templates = folder / "templates"
        self.templates.mkdir()
        (self.templates / "bench.yaml").write_text(_TEMPLATE)
        _make_repository(self.repository)

    def environ(self, home: Path) -> dict[str, str]:
        """Return the environment of a command that works on ``home``: nothing of the user's service is in it."""
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith(_NOT_OURS)}
        kept.pop("PROVISION_TIMEOUT_SECONDS", None)
        return {**kept, "TASKRUNNER_HOME": str(home), "TASKRUNNER_TEMPLATES": str(self.templates)}


class Stack:
    """An embedded stack that runs: its home, its service and its Temporal."""

    def __init__(self, home: Path, service: Service, temporal: Client) -> None:
        self.home = home
        self.service = service
        self.temporal = temporal


@asynccontextmanager
async def workplace(progress: Callable[[str], None]) -> AsyncGenerator[Workplace]:
    """Make a workplace, and remove it with all that is in it."""
    # Not a folder that tempfile cleans up: trees of workspaces may hold what only remove_tree gets rid of.
    folder = Path(mkdtemp(prefix="taskrunner-bench-"))
    try:
        yield await asyncio.to_thread(Workplace, folder)
    finally:
        try:
            await asyncio.to_thread(remove_tree, folder)
        except OSError as e:
            progress(f"{folder} cannot be removed: {e.strerror}")


@asynccontextmanager
async def running_stack(place: Workplace) -> AsyncGenerator[Stack]:
    """Run ``taskrunner dev`` on a home of its own for as long as the context lasts; it dies with us."""
    home = place.folder / "home"
    async with AsyncExitStack() as parts:
        child = await Child.start(
            "the stack",
            [*PROGRAM, "dev", "--json", "--port", "0", "--temporal-port", "0", "--ui-port", "0"],
            cwd=place.folder,
            env=place.environ(home),
            log=place.folder / "stack.log",
            is_ready=lambda line: line.startswith("{"),
            timeout=_START_SECONDS,
            stop_signal=signal.SIGTERM,
        )
        parts.push_async_callback(child.stop, 60.0)
        record = read_record(home)
        if record is None:
            raise CliError(f"the stack left no record in {home}")
        yield Stack(home, Service(record.api_url, read_token(home), record), await connect(record.temporal_address))


async def run_command(environ: dict[str, str], cwd: Path, *args: str, first_byte: bool = False) -> float:
    """Run the ``taskrunner`` command and return how long it took, in seconds: to its end, or to its first output.

    Raises ``CliError`` where it fails, with its last words.
    """
    return await run_program([*PROGRAM, *args], environ, cwd, first_byte=first_byte)


async def run_program(argv: list[str], environ: dict[str, str], cwd: Path, *, first_byte: bool = False) -> float:
    """Do the same for any program."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stderr
    said = asyncio.create_task(process.stderr.read())
    try:
        piece = await process.stdout.read(1)
        until_first_byte = loop.time() - started
        await process.stdout.read()
        code = await process.wait()
        until_end = loop.time() - started
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # a run cancels its task, and stops the stack that it started
        await process.wait()
        raise
    finally:
        words = (await said).decode("utf-8", "replace").strip()
    if code != 0 or (first_byte and not piece):
        last = (words.splitlines() or ["it said nothing"])[-1]
        raise CliError(f"{' '.join(argv[1:])} ended with exit code {code}: {last}")
    return until_first_byte if first_byte else until_end


def _make_repository(folder: Path) -> None:
    folder.mkdir()
    (folder / "README").write_text("A repository of taskrunner bench.\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for args in (("init", "--quiet"), ("add", "README"), (*_GIT_IDENTITY, "commit", "--quiet", "-m", "Start")):
        done = subprocess.run(["git", *args], cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CliError(f"git cannot make a repository in {folder}: {done.stderr.strip()}")
