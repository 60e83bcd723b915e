"""Bodies of the callbacks that a workspace sends to the API, and the API's answers.

Both ``snake_case`` and ``camelCase`` names are read and unknown fields are ignored, because what runs in a workspace
may be older, newer or somebody else's.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from messages.names import Id
from messages.numbers import WholeNumber
from messages.statuses import BootStatus, HeartbeatState, SessionStatus

MAX_BODY_BYTES = 64 * 1024
MAX_OUTPUT_BODY_BYTES = 256 * 1024
LOG_TAIL_BYTES = 8 * 1024

MAX_TEXT_CHARS = 4096
MAX_STEP_CHARS = 100
MAX_CERTIFICATE_CHARS = 4096

NOT_KEPT = "not kept"
"""The step of the boot log's entries about what an agent changed and a release could not save."""

ShortText = Annotated[str, AfterValidator(lambda text: text[:MAX_TEXT_CHARS])]
"""Text for people. What is longer is cut, because a refusal is final: the workspace would have said it for nothing."""
FinalSessionStatus = Literal[
    SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.INTERRUPTED, SessionStatus.CANCELLED
]


def log_tail(text: str) -> str:
    """Return the last 8 KiB of ``text`` (counted in UTF-8, cut at a character), without NUL characters."""
    kept = text.replace("\0", "").encode("utf-8", "replace")[-LOG_TAIL_BYTES:]
    return kept.decode("utf-8", "ignore")


class CallbackBody(BaseModel):
    """The base of every callback's body."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class ReadyBody(CallbackBody):
    """``POST /api/workspaces/{id}/ready``."""

    agent_version: ShortText | None = None
    tls_certificate: Annotated[str, StringConstraints(max_length=MAX_CERTIFICATE_CHARS)] | None = None


class ProvisioningFailedBody(CallbackBody):
    """``POST /api/workspaces/{id}/provisioning-failed``; an empty body is accepted."""

    error_message: ShortText | None = None
    log_tail: str | None = None


class BootLogBody(CallbackBody):
    """``POST /api/workspaces/{id}/boot-log``."""

    step: Annotated[str, AfterValidator(lambda text: text[:MAX_STEP_CHARS] if text.strip() else "unnamed")]
    status: BootStatus
    message: ShortText
    detail: str | None = None
    timestamp: datetime


class HeartbeatBody(CallbackBody):
    """``POST /api/workspaces/{id}/heartbeat``.

    ``sessions`` and ``pending`` are the ids of the sessions known to the agent and the number of callbacks it has
    still to deliver; ``metrics`` is free-form.
    """

    state: HeartbeatState
    reason: ShortText | None = None
    sessions: list[Id] | None = Field(default=None, max_length=100)
    pending: Annotated[int, Field(ge=0), WholeNumber] | None = None
    metrics: dict[str, float] | None = Field(default=None, max_length=100)


class OutputBody(CallbackBody):
    """``POST /api/workspaces/{id}/sessions/{session_id}/output``.

    ``offset`` is the number of bytes (UTF-8) of the session's output before these chunks; the batch's text is the
    chunks joined.
    """

    offset: Annotated[int, Field(ge=0, le=2**62), WholeNumber]
    chunks: list[str]


class FinishedBody(CallbackBody):
    """``POST /api/workspaces/{id}/sessions/{session_id}/finished``.

    ``exit_code`` is what :class:`~messages.signals.SessionFinished` says of it.
    """

    status: FinalSessionStatus
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31), WholeNumber] | None = None
    summary: ShortText | None = None
    error_message: ShortText | None = None


class CallbackAnswer(BaseModel):
    """The API's answer to a ready, failed or finished callback. ``reason`` is there only without success."""

    success: bool
    reason: str | None = None


class HeartbeatAnswer(BaseModel):
    """The API's answer to a heartbeat; the token is there from half of the old one's life."""

    refreshed_token: str | None = None
