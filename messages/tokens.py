"""Callback tokens: what a workspace shows when it calls back.

A JWT signed with EdDSA (RFC 8037). It is made from the attempt's row alone, so it exists before the compute does, and
is made anew, claim by claim the same, whenever it is needed; it is stored nowhere.
"""

from datetime import datetime, timedelta
from typing import Annotated, Literal

import jwt
from pydantic import Field, ValidationError

from messages.base import Message
from messages.keys import Keyring
from messages.names import Id

AUDIENCE = "taskrunner-callback"
LIFETIME = timedelta(hours=24)
WORKSPACE_SCOPE = "workspace"


class InvalidToken(Exception):
    """The token is none of ours, or expired: 401."""


class CallbackClaims(Message):
    """What a callback token says: workspace (``sub``), attempt, owning workflow, scope; times are Unix seconds."""

    aud: Literal["taskrunner-callback"] = AUDIENCE
    sub: Id
    att: Annotated[int, Field(ge=1)]
    wf: Annotated[str, Field(min_length=1, max_length=1000)]
    scope: Annotated[str, Field(min_length=1, max_length=50)] = WORKSPACE_SCOPE
    iat: int
    exp: int

    def past_half_life(self, now: datetime) -> bool:
        """Whether it is time for a new token."""
        return now.timestamp() >= (self.iat + self.exp) / 2


def mint_callback_token(
    keys: Keyring, *, workspace_id: str, attempt: int, workflow_id: str, issued_at: datetime
) -> str:
    """Return the token of one attempt, valid for 24 hours from ``issued_at`` (the attempt's creation, or a renewal)."""
    issued = int(issued_at.timestamp())
    claims = CallbackClaims(
        sub=workspace_id, att=attempt, wf=workflow_id, iat=issued, exp=issued + int(LIFETIME.total_seconds())
    )
    key = keys.signing_key(keys.active)
    assert key is not None  # Keyring guarantees its active key
    return jwt.encode(claims.model_dump(), key, algorithm="EdDSA", headers={"kid": keys.active})


def verify_callback_token(keys: Keyring, token: str) -> CallbackClaims:
    """Return the claims of a token of ours that has not expired; raise :class:`InvalidToken` for any other."""
    try:
        key = keys.signing_key(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise InvalidToken("signed with an unknown key")
        claims = jwt.decode(
            token,
            key.public_key(),
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            # Only the end counts: a clock that is a second behind the issuer's must not turn a workspace away.
            options={"require": ["exp", "iat", "sub", "aud"], "verify_iat": False},
        )
        return CallbackClaims.model_validate(claims)
    except jwt.PyJWTError as e:
        raise InvalidToken(str(e)) from e
    except ValidationError as e:
        raise InvalidToken("claims are missing or malformed") from e
