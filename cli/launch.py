"""The embedded stack that a ``taskrunner run`` starts where no service answers, and how the last run out stops it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from cli.discovery import Service, embedded_service
from cli.errors import CliError, Unreachable, UsageError
from cli.home import FileLock, Home, locks_on, told_of_home, waiting_for_start, waiting_for_stop
from cli.interrupts import interrupts_kept
from messages.settings import Settings

Progress = Callable[[str], None]
_STOP_SECONDS = 60.0


class Joined(NamedTuple):
    """A service to use, and whether it was us who started it."""

    service: Service
    started: bool


def hold_stack(home: Home, users: FileLock, progress: Progress) -> None:
    """Take ``users.lock`` shared; where the last one out stops its stack just now, say so and wait for its end."""
    if not users.try_shared():
        progress(waiting_for_stop(home))
        users.shared()


def join_stack(settings: Settings, home: Home, progress: Progress, *, before_start: Callable[[], None]) -> Joined:
    """Return the service of this home's stack, started (after ``before_start``) where none answers.

    The caller holds ``users.lock`` shared, so a stack that a run started does not end meanwhile. Raises ``UsageError``
    or ``Unreachable`` with the stack's own reason where it does not start.
    """
    if service := embedded_service(settings):
        return Joined(service, started=False)
    start = FileLock(home.start_lock)
    try:
        if not start.try_exclusive():
            progress(waiting_for_start(home))
            start.exclusive()
        if service := embedded_service(settings):
            return Joined(service, started=False)
        before_start()
        _spawn(settings, home, start, progress)
    finally:
        start.close()
    service = embedded_service(settings)
    if service is None:
        raise Unreachable(f"the stack started but does not answer; see {home.log}")
    return Joined(service, started=True)


@contextmanager
def joined_stack(settings: Settings, progress: Progress) -> Generator[Service]:
    """Have this home's stack, started where none answers, while the context lasts; the last one out stops it.

    Raises as :func:`join_stack`.
    """
    home = Home(settings.home)
    users = FileLock(home.users_lock)
    try:
        with interrupts_kept():
            hold_stack(home, users, progress)
            service = join_stack(settings, home, progress, before_start=lambda: None).service
        yield service
    finally:
        leave_stack(home, users, progress)


def _spawn(settings: Settings, home: Home, start: FileLock, progress: Progress) -> None:
    """Start the detached stack and return when it serves. It holds ``start.lock`` with us until then."""
    progress("Starting the embedded stack")
    with told_of_home(home.path, home.log):
        _rotate(home)
        home.log.open("ab").close()
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "cli.main", "dev", "--while-used", str(writer), str(start.fd)]
    with home.log.open("ab") as log, os.fdopen(reader, "rb") as reports:
        process = subprocess.Popen(
            command,
            cwd=home.path,
            env={**os.environ, **_absolute_paths(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer, start.fd),
            start_new_session=True,
        )
        os.close(writer)
        try:
            for line in reports:
                report = json.loads(line)
                if report.get("ready"):
                    # It is not ours to wait for any more: leave() does that for whichever stack there is then.
                    process.returncode = 0
                    return
                if "error" in report:
                    process.wait()
                    raise _error(report)
                progress(report["progress"])
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                progress("Stopping the stack that was starting; once more to leave at once")
            process.terminate()
            process.wait()
            raise
        code = process.wait()
    raise Unreachable(f"the stack ended while it started (exit code {code}); see {home.log}")


def _error(report: dict[str, object]) -> CliError:
    kind = UsageError if report.get("exit_code") == UsageError.exit_code else Unreachable
    return kind(str(report["error"]))


def _absolute_paths(settings: Settings) -> dict[str, str]:
    """Return the settings that name paths, for a process with another working directory."""
    paths = {
        "TASKRUNNER_HOME": settings.home,
        "TASKRUNNER_TEMPLATES": settings.templates,
        "TASKRUNNER_KEYS_FILE": settings.keys_file,
        "TASKRUNNER_TEMPORAL_BIN": settings.temporal_bin,
    }
    return {name: str(path) for name, path in paths.items() if path is not None}


def _rotate(home: Home) -> None:
    if home.log.exists() and home.log.stat().st_size > 4 * 1024 * 1024:
        home.log.replace(home.log.with_suffix(".log.1"))


def is_only_user(home: Home) -> bool:
    """Tell whether nobody but us holds ``users.lock``; False where that cannot be found out."""
    return locks_on(home.users_lock) == ["READ"]


def leave_stack(home: Home, users: FileLock, progress: Progress) -> None:
    """Give up our hold on the stack; where we were the last and a run had started it, stop it and wait for its end."""
    record = home.read_record()
    try:
        if record is None or not record.while_used or not record.is_alive:
            return
        pidfd = os.pidfd_open(record.pid)
        try:
            if not record.is_alive:
                return
            if users.try_exclusive():
                # While we hold it alone nobody can come to rely on the stack; who comes now starts a new one.
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                if not _ends(pidfd):
                    progress(f"The stack (process {record.pid}) is still stopping; see {home.log}")
                with contextlib.suppress(ChildProcessError):  # another run's child
                    os.waitpid(record.pid, os.WNOHANG)
            else:
                # Either others use it, then this succeeds at once; or somebody is stopping it, then it waits for that.
                hold_stack(home, users, progress)
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        return
    finally:
        users.close()


def _ends(pidfd: int) -> bool:
    """Wait until the process behind ``pidfd`` has ended; False if it has not within 60 s."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(_STOP_SECONDS * 1000))
