"""The base of every message."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A value that crosses a process border: frozen, compared by value.

    Unknown fields are ignored when a message is read, so that an older process can read what a newer one wrote; for
    the same reason every field added after a release needs a default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
