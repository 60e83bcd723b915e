"""What may be written where: colours and lines that change in place, as the user's environment says; or nothing."""

import os
from typing import IO, Any


def wants_colours() -> bool | None:
    """Return whether colours are wanted; None: where a terminal reads them.

    ``NO_COLOR`` (https://no-color.org) comes before ``CLICOLOR_FORCE`` and ``FORCE_COLOR``, and those before
    ``CLICOLOR=0`` and ``TERM=dumb``. What is set but empty counts as not set, and a force of 0 too.
    """
    env = os.environ
    if env.get("NO_COLOR"):
        return False
    if any(env.get(name, "") not in {"", "0"} for name in ("CLICOLOR_FORCE", "FORCE_COLOR")):
        return True
    return False if env.get("CLICOLOR") == "0" or env.get("TERM") == "dumb" else None


def can_redraw(stream: IO[str]) -> bool:
    """Tell whether lines on ``stream`` may be written anew: a person looks at it, on a terminal that can do that."""
    env = os.environ
    return stream.isatty() and env.get("TERM", "") not in {"", "dumb", "unknown"} and not env.get("CI")


def discard(stream: IO[Any]) -> None:
    """Lead a stream that takes nothing any more, and what it still holds, to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
