"""What the assembling of processes raises."""

from pathlib import Path


class StackError(Exception):
    """A part of the stack cannot be started or reached; the text is one line that says which, why and what to do."""


class DidNotStart(StackError):
    """A server ended while it started; the text has its last words."""


class CannotBeUsed(StackError):
    """A file or folder of the home is at fault; the text says which, and what mends it."""


class DiskFull(StackError):
    """A server did not start because it could not write its data."""


_FULL_DISK = ("no space left on device", "database or disk is full", "disk quota exceeded")


def did_not_start(what: str, last_words: str, folder: Path) -> StackError:
    """Return the error for a program that ended while it started, by what it said; its data is in ``folder``."""
    if any(words in last_words.lower() for words in _FULL_DISK):
        return DiskFull(
            f"{what}: the disk of {folder} is full; free some space, or set TASKRUNNER_HOME to a folder on another disk"
        )
    return DidNotStart(f"{what}: {last_words}")


ASK_THE_DOCTOR = "taskrunner doctor says what is missing"
"""Ends an error's text where it helps, after ``; ``."""
