"""Who may ask: API tokens of users, callback tokens of workspaces. Neither is taken for the other."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.problems import Problem, registry_away
from messages.defaults import WHERE_TOKENS_ARE
from messages.keys import Keyring
from messages.tokens import WORKSPACE_SCOPE, CallbackClaims, InvalidToken, mint_callback_token, verify_callback_token
from store.errors import RegistryError, RegistryUnavailable
from store.registry import Registry
from store.tokens import TokenStore

MAX_TOKEN_CHARS = 4096
USER_CACHE_SECONDS = 30.0
"""How long a valid API token is remembered, so that a short outage of the registry locks nobody out."""
_CACHED_TOKENS = 1000
_AT_FIRST_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)

_user_scheme = HTTPBearer(auto_error=False, scheme_name="API token", description="An API token of this installation.")
_callback_scheme = HTTPBearer(
    auto_error=False, scheme_name="Callback token", description="The token of one attempt's workspace."
)
UserCredentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_user_scheme)]
CallbackCredentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_callback_scheme)]


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


@asynccontextmanager
async def accepting(registry: Registry, name: str, token: str) -> AsyncGenerator[None]:
    """Have ``token`` accepted: from the beginning of the context on, or from the return of PostgreSQL where it is away.

    Whoever serves does so meanwhile, because callbacks need no registry. It stays accepted when the context ends.
    """
    adding = asyncio.create_task(_add(registry, name, token), name="accept the API token")
    try:
        await asyncio.wait({adding}, timeout=_AT_FIRST_SECONDS)
        yield
    finally:
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)


async def _add(registry: Registry, name: str, token: str) -> None:
    while True:
        try:
            await registry.tokens.add(name, token)
        except RegistryError as e:
            _log.warning("the API token is not accepted yet, callbacks are: %s", e)
            await asyncio.sleep(_RETRY_SECONDS)  # after one that has waited for PostgreSQL itself
        else:
            return


class CallbackAuth:
    """Checks callback tokens, with the keys alone: no registry, no network."""

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys

    def claims(self, credentials: HTTPAuthorizationCredentials | None, workspace_id: str) -> CallbackClaims:
        """Return the claims of a token that may speak for ``workspace_id``; raise 401 or 403."""
        if credentials is None:
            raise _unauthorized("no callback token; send it as: Authorization: Bearer <token>")
        token = credentials.credentials
        try:
            if len(token) > MAX_TOKEN_CHARS:
                raise InvalidToken("too long")
            claims = verify_callback_token(self._keys, token)
        except (InvalidToken, ValueError):
            # Which check failed is of use only to somebody who is guessing.
            raise _unauthorized(
                "the callback token is not one of this installation's, or it has expired; nothing was done"
            ) from None
        if claims.scope != WORKSPACE_SCOPE:
            raise Problem(403, "wrong-scope", f"the token is not of scope {WORKSPACE_SCOPE!r}; nothing was done")
        if claims.sub != workspace_id:
            raise Problem(403, "wrong-workspace", "the token belongs to another workspace; nothing was done")
        return claims

    def renewed(self, claims: CallbackClaims) -> str | None:
        """Return a new token for the same attempt once half of the old one's life is over, else None."""
        now = datetime.now(UTC)
        if not claims.past_half_life(now):
            return None
        return mint_callback_token(
            self._keys, workspace_id=claims.sub, attempt=claims.att, workflow_id=claims.wf, issued_at=now
        )


class UserAuth:
    """Checks API tokens against the registry, which knows only their hashes."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens
        self._valid_until: dict[bytes, float] = {}

    async def check(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        """Return for a valid token; raise 401 for any other, 503 where that cannot be told."""
        if credentials is None:
            raise _unauthorized(f"no API token; send it as: Authorization: Bearer <token>; {WHERE_TOKENS_ARE}")
        token = credentials.credentials
        if len(token) > MAX_TOKEN_CHARS:
            raise _unauthorized("the API token is too long to be one of ours")
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        if self._valid_until.get(key, 0.0) > time.monotonic():
            return
        try:
            valid = await self._tokens.is_valid(token)
        except RegistryUnavailable:
            raise registry_away() from None
        self._valid_until.pop(key, None)
        if not valid:
            raise _unauthorized(f"the API token is not one of this installation's; {WHERE_TOKENS_ARE}")
        if len(self._valid_until) >= _CACHED_TOKENS:
            self._valid_until.clear()
        self._valid_until[key] = time.monotonic() + USER_CACHE_SECONDS
