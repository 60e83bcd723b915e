"""What pydantic finds wrong, in words for the people whose value it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from messages.names import (
    ENV_PATTERN,
    HOST_PATTERN,
    ID_PATTERN,
    IMAGE_PATTERN,
    MEMORY_PATTERN,
    NETWORK_PATTERN,
    PATH_PATTERN,
    REF_PATTERN,
)

_TIME = "has to be a time, for example 2026-01-31T13:04:00Z"

_BY_TYPE = {
    "missing": "is missing",
    "string_type": "has to be text",
    "string_unicode": "has to be text in UTF-8",
    "bool_type": "has to be true or false",
    "bool_parsing": "has to be true or false",
    "int_type": "has to be a whole number",
    "int_parsing": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "has to be a number",
    "float_parsing": "has to be a number",
    "finite_number": "has to be a number",
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "list_type": "has to be a list",
    "tuple_type": "has to be a list",
    "dict_type": "has to be a mapping",
    "model_type": "has to be a mapping",
    "model_attributes_type": "has to be a mapping",
    "url_parsing": "has to be an address: http://host:port",
    "url_type": "has to be an address: http://host:port",
    "url_scheme": "has to be an address: http://host:port or https://host:port",
    "extra_forbidden": "is not known here",
    "time_delta_type": "is not a duration: write for example 90s, 15m, 2h or 1h30m",
    "time_delta_parsing": "is not a duration: write for example 90s, 15m, 2h or 1h30m",
}
_BY_PATTERN = {
    ID_PATTERN: "has to be at most 40 small letters, digits and hyphens, not a hyphen first",
    ENV_PATTERN: "has to be letters, digits and underscores, not a digit first",
    HOST_PATTERN: "has to be at most 100 letters, digits, dots, underscores and hyphens, a letter or a digit first",
    IMAGE_PATTERN: "has to be the name of an image: without spaces, and no hyphen first",
    MEMORY_PATTERN: "has to be a number of bytes, or as 512m or 4g",
    NETWORK_PATTERN: "has to be letters, digits, dots, underscores and hyphens, a letter or a digit first",
    PATH_PATTERN: "has to be an absolute path",
    REF_PATTERN: "has to be a branch, a tag or a commit: without spaces, and no hyphen first",
}

_ENUMERATED = re.compile(r"<\w+\.\w+: ([^>]*)>")
"""How Python shows a member of an enumeration, which pydantic does for those that a literal lists."""

_CHOSEN_BY_KIND = {"agent"}
"""Fields of one of several shapes, behind whose name pydantic puts that of the shape."""


class Violation(NamedTuple):
    """One thing that is wrong: ``field`` (dotted; empty for the whole) and what is wrong with it."""

    field: str
    text: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.field}: {self.text}" if self.field else self.text


def violations(error: ValidationError) -> list[Violation]:
    """Return all that is wrong, at least one. No value is quoted: it may be long, or secret."""
    return [
        Violation(".".join(_field(each["loc"])), explain(each))
        for each in error.errors(include_url=False, include_input=False)
    ]


def _field(place: Sequence[str | int]) -> list[str]:
    """Return where somebody would look for it in what they sent: without pydantic's own marks."""
    return [
        str(part)
        for before, part in zip(("", *place), place, strict=False)
        if part != "[key]" and before not in _CHOSEN_BY_KIND
    ]


def first_violation(error: ValidationError) -> Violation:
    """Return the first thing that is wrong."""
    return violations(error)[0]


def explain(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors means. The context that pydantic gave is used where it is there."""
    kind: str = error["type"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    match kind:
        case "string_too_short":
            return (
                "is blank" if context.get("min_length") == 1 else f"is shorter than {context['min_length']} characters"
            )
        case "string_too_long":
            return f"is longer than {context['max_length']} characters"
        case "too_short":
            return "is empty" if context.get("min_length") == 1 else f"has fewer than {context['min_length']} entries"
        case "too_long":
            return f"has more than {context['max_length']} entries"
        case "string_pattern_mismatch":
            return _BY_PATTERN.get(context["pattern"], f"does not look like {context['pattern']}")
        case "enum" | "literal_error":
            return f"has to be one of: {_names(context['expected'])}"
        case "union_tag_invalid":
            return f"{context['discriminator'].strip(chr(39))} has to be one of: {_names(context['expected_tags'])}"
        case "greater_than":
            return f"has to be greater than {context['gt']}"
        case "greater_than_equal":
            return f"has to be at least {context['ge']}"
        case "less_than":
            return f"has to be less than {context['lt']}"
        case "less_than_equal":
            return f"has to be at most {context['le']}"
        case "json_invalid":
            return f"is not JSON: {context['error']}"
        case _:
            return str(error["msg"]).removeprefix("Value error, ")


def _names(expected: str | Iterable[str]) -> str:
    listed = expected if isinstance(expected, str) else ", ".join(expected)
    listed = _ENUMERATED.sub(r"\1", listed)
    return listed.replace(" or ", ", ").replace("'", "")
