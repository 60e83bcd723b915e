"""The agent's command line: ``agent.pyz serve`` and ``agent.pyz prepare``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from agent import __version__
from agent.boot import Boot
from agent.checkout import StepFailed
from agent.config import ConfigError, forget_secrets, read_config
from agent.files import without_credentials
from agent.processes import Children
from agent.service import lock_state, serve


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed (a line on standard error says why), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="agent.pyz", description="The workspace agent of taskrunner.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="name", required=True)
    serving = commands.add_parser("serve", help="boot, serve HTTP, report, beat and run sessions until SIGTERM")
    serving.add_argument("--config", type=Path, required=True)
    serving.add_argument("--listen-fd", type=int, help="descriptor of a socket that listens already")
    serving.add_argument("--go-fd", type=int, help="descriptor of a pipe: wait for a byte; end where it closes without")
    preparing = commands.add_parser("prepare", help="only prepare the checkout")
    preparing.add_argument("--config", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.name == "serve" and given.go_fd is not None and not _may_go(given.go_fd):
        return _fail("what started it has ended before the workspace was whole")
    try:
        config = read_config(given.config, serving=given.name == "serve")
        if given.name == "serve":
            forget_secrets(given.config)
            serve(config, given.listen_fd)
        else:
            lock = lock_state(config)
            try:
                Boot(config, dict(os.environ), Children()).prepare()
            finally:
                os.close(lock)
    except (ConfigError, StepFailed) as e:
        return _fail(str(e))
    except OSError as e:
        return _fail(f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror or e))
    if given.name == "serve":
        # Threads that wait for the network must not hold up the exit; all that matters is on disk.
        sys.stderr.flush()
        os._exit(0)
    return 0


def _may_go(pipe: int) -> bool:
    """Wait until whoever started us says that the workspace is whole; False where it ends, or gives up, before that."""
    goes = os.read(pipe, 1) != b""
    os.close(pipe)
    return goes


def _fail(text: str) -> int:
    sys.stderr.write(f"agent: {without_credentials(text)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
