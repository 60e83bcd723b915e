"""API tokens, of which only hashes are stored."""

import hashlib

from store.database import Connection, Group, statement

_ADD = """
    INSERT INTO api_tokens (name, sha256) VALUES (%(name)s, %(sha256)s)
    ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256, created_at = now()
"""
_REMOVE = "DELETE FROM api_tokens WHERE name = %(name)s"
_IS_VALID = "SELECT 1 FROM api_tokens WHERE sha256 = %(sha256)s LIMIT 1"


class TokenStore(Group):
    """The API tokens."""

    @statement
    async def add(self, connection: Connection, name: str, token: str) -> None:
        """Accept ``token`` from now on; another one of the same name is no longer accepted."""
        await connection.execute(_ADD, {"name": name, "sha256": _hash(token)})

    @statement
    async def remove(self, connection: Connection, name: str) -> None:
        """Accept the token of that name no longer, if there is one."""
        await connection.execute(_REMOVE, {"name": name})

    @statement
    async def is_valid(self, connection: Connection, token: str) -> bool:
        """Tell whether ``token`` is one of the accepted ones.

        The look-up is by hash, so its duration tells nothing about the token.
        """
        return await (await connection.execute(_IS_VALID, {"sha256": _hash(token)})).fetchone() is not None


def _hash(token: str) -> bytes:
    # A token is long and random, so a plain hash cannot be guessed back.
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
