"""Numbers as people write them: pydantic takes ``true`` for 1, which nobody means who writes it where a number goes."""

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def _no_boolean_whole(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


WholeNumber = BeforeValidator(_no_boolean_whole)
"""Makes an ``int`` refuse ``true`` and ``false``; stands behind what else is said of the field."""

Number = BeforeValidator(_no_boolean)
"""The same for a ``float``."""
