"""Durations as people write them: ``90s``, ``15m``, ``2h``, ``1d``, ``1h30m``, ``500ms``."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"(\d+)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_LONGEST = timedelta(days=365)


def parse_duration(text: str) -> timedelta:
    """Return the duration that ``text`` names; raise ``ValueError`` with the accepted forms if it names none."""
    compact = text.strip().replace(" ", "")
    if not _WHOLE.fullmatch(compact) or len(compact) > 30:
        raise ValueError(f"{text!r} is not a duration: write for example 90s, 15m, 2h or 1h30m")
    try:
        total = sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in _PART.findall(compact)), timedelta())
    except OverflowError:
        total = timedelta.max
    if total > _LONGEST:
        raise ValueError(f"{text!r} is longer than a year")
    return total


def format_duration(duration: timedelta) -> str:
    """Return ``duration`` in the same form, to the millisecond: ``1h30m``, ``45s``, ``1s500ms``."""
    left = round(duration / timedelta(milliseconds=1))
    parts: list[str] = []
    for unit, name in reversed(_UNITS.items()):
        count, left = divmod(left, timedelta(**{name: 1}) // timedelta(milliseconds=1))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _read(value: object) -> object:
    if isinstance(value, str) and not value.startswith("P"):
        return parse_duration(value)
    if isinstance(value, int | float):
        raise ValueError(f"{value!r} has no unit: write for example 90s, 15m or 2h")  # noqa: TRY004 (pydantic reads ValueError)
    return value


def _bounded(duration: timedelta) -> timedelta:
    # What is much longer cannot be added to a date: a workflow that tried would fail in the same way for ever.
    if duration < timedelta(0):
        raise ValueError("is shorter than nothing: write for example 90s, 15m, 2h or 1h30m")
    if duration > _LONGEST:
        raise ValueError("is longer than a year")
    return duration


Duration = Annotated[timedelta, BeforeValidator(_read), AfterValidator(_bounded)]
"""A ``timedelta`` from 0 to a year, read from ``2h`` and the like, or from ISO 8601 (``PT2H``), as JSON carries it."""
