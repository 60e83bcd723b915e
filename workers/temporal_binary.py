"""Where the Temporal CLI comes from: a named one, ``PATH``, our cache, the SDK's own download, ``go install``."""

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from workers.children import last_words
from workers.errors import ASK_THE_DOCTOR, StackError

GO_PACKAGE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
"""The newest version that ``go install`` can build (later ones need replace directives)."""

DOWNLOADS = "https://temporal.download"
"""Where the SDK downloads the CLI from."""

INSTALL_HINT = (
    "install the Temporal CLI (https://docs.temporal.io/cli) so that `temporal` is on PATH, "
    "or point TASKRUNNER_TEMPORAL_BIN to it"
)

_HINT = f"{INSTALL_HINT}; {ASK_THE_DOCTOR}"

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """Return where programs that we obtained are kept, for all homes of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "taskrunner" / "bin"


def find_temporal(named: Path | None) -> Path | None:
    """Return the Temporal CLI that is on this machine already, or None.

    Raises ``StackError`` where ``named`` (``TASKRUNNER_TEMPORAL_BIN``) is no program: what was asked for explicitly
    is never replaced by something else.
    """
    if named is not None:
        if not (named.is_file() and os.access(named, os.X_OK)):
            raise StackError(f"TASKRUNNER_TEMPORAL_BIN={named} is not an executable file; correct it or unset it")
        return named
    if on_path := shutil.which("temporal"):
        return Path(on_path)
    cached = cache_folder() / "temporal"
    return cached if os.access(cached, os.X_OK) else None


async def obtain_temporal(named: Path | None, progress: Progress) -> Path:
    """Return the Temporal CLI, obtained first where it is missing; ``progress`` hears what takes long.

    Raises ``StackError`` saying what to install where there is no way to get it.
    """
    if found := find_temporal(named):
        return found
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StackError(f"the Temporal CLI is missing and {cache} cannot be written ({e.strerror}); {_HINT}") from e
    try:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)  # others wait for the first one's
        if found := find_temporal(named):
            return found
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as folder:
            program = await _download(Path(folder), progress) or await _build(Path(folder), progress)
            program.chmod(0o755)
            return program.rename(cache / "temporal")
    finally:
        os.close(lock)


async def _download(folder: Path, progress: Progress) -> Path | None:
    """Let the SDK download the CLI, as its test environments do; None where the download cannot be reached."""
    from temporalio.testing import WorkflowEnvironment

    progress("The Temporal CLI is missing; downloading it (once, about 50 MB)")
    try:
        async with asyncio.timeout(300):
            environment = await WorkflowEnvironment.start_local(  # pyright: ignore[reportUnknownMemberType]
                download_dest_dir=str(folder), dev_server_download_ttl=timedelta(0)
            )
            await environment.shutdown()
    except (RuntimeError, TimeoutError) as e:
        progress(f"The download failed: {_first_line(e)}")
        return None
    return next((path for path in sorted(folder.glob("*")) if path.is_file()), None)  # noqa: ASYNC240 (a few entries)


async def _build(folder: Path, progress: Progress) -> Path:
    """Build the CLI from source with Go."""
    go = shutil.which("go")
    if go is None:
        raise StackError(f"the Temporal CLI is missing, cannot be downloaded, and there is no Go to build it; {_HINT}")
    progress(f"Building the Temporal CLI: go install {GO_PACKAGE} (once, about 5 minutes on 2 cores)")
    log = folder / "go.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            go,
            "install",
            GO_PACKAGE,
            env={**os.environ, "GOBIN": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = await process.wait()
        except BaseException:
            process.kill()
            raise
    if code != 0 or not (folder / "temporal").exists():
        words = last_words(log.read_text(errors="replace").splitlines())
        raise StackError(f"the Temporal CLI cannot be built: {words}; {_HINT}")
    return folder / "temporal"


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\?[^\s)]*", "", text)[:200]  # without the query of the address
