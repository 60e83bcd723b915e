"""What a check finds."""

from dataclasses import dataclass, replace
from enum import StrEnum

from workers.errors import ASK_THE_DOCTOR

PATIENCE_SECONDS = 3.0
"""How long a program or a server is waited for."""


class Status(StrEnum):
    """How a checked thing is. Only ``broken`` keeps something from working."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"
    NOT_NEEDED = "not needed"


@dataclass(frozen=True)
class Check:
    """One thing: what was ``found`` of it and, where it is not well, the ``problem`` and what mends it.

    ``mend`` is a command wherever there is one. No text holds a secret.
    """

    name: str
    status: Status
    found: str
    problem: str | None = None
    mend: str | None = None

    def as_not_needed(self) -> "Check":
        """Return the same of a thing that nothing here needs: it may be missing."""
        return self if self.status is Status.OK else replace(self, status=Status.NOT_NEEDED)

    def as_warning(self) -> "Check":
        """Return the same of a thing without which most works."""
        return replace(self, status=Status.WARNING) if self.status is Status.BROKEN else self


def ok(name: str, found: str) -> Check:
    """Return that a thing works."""
    return Check(name, Status.OK, found)


def not_needed(name: str, why: str) -> Check:
    """Return that a thing was not looked at."""
    return Check(name, Status.NOT_NEEDED, why)


def warning(name: str, found: str, problem: str, mend: str) -> Check:
    """Return that a thing works for now, or in part."""
    return Check(name, Status.WARNING, found, problem, mend)


def broken(name: str, found: str, problem: str, mend: str) -> Check:
    """Return that a thing does not work."""
    return Check(name, Status.BROKEN, found, problem, mend)


def from_error(name: str, found: str, error: Exception) -> Check:
    """Return what an error of one of our parts says: they all end with ``; `` and what to do."""
    text = " ".join(str(error).split()).removesuffix(f"; {ASK_THE_DOCTOR}")
    problem, _, mend = text.partition("; ")
    return broken(name, found, problem, mend.removeprefix("run: ") or "taskrunner dev, whose log says more")
