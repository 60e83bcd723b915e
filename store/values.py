"""What PostgreSQL cannot hold is taken out of values before they are stored."""

import math
from datetime import UTC, datetime
from typing import Any, cast

from psycopg.types.json import Jsonb

from messages.base import Message


def clean_text(text: str) -> str:
    """Return ``text`` without NUL characters and lone surrogates, which neither ``text`` nor ``jsonb`` can hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def clean_or_none(text: str | None) -> str | None:
    """Return the same for a text that may be missing; an empty one counts as missing."""
    return clean_text(text or "") or None


def clean(value: Any) -> Any:
    """Return a JSON value with its texts cleaned and numbers that JSON does not know (NaN, infinities) as null."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {clean_text(str(key)): clean(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [clean(item) for item in cast(list[Any], value)]
    return value


def jsonb(value: dict[str, Any]) -> Jsonb:
    """Return the parameter for a ``jsonb`` column."""
    return Jsonb(clean(value))


def message_jsonb(message: Message | None) -> Jsonb | None:
    """Return the parameter for a ``jsonb`` column that holds a message, or NULL."""
    return None if message is None else jsonb(message.model_dump(mode="json"))


def believable(timestamp: datetime) -> datetime:
    """Return a timestamp from outside, in UTC where it has no zone, or the present where it is absurd.

    PostgreSQL stores years that Python cannot read back, and a workspace's clock must not make its record unreadable.
    """
    if not 1970 <= timestamp.year <= 2999:
        return datetime.now(UTC)
    return timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
