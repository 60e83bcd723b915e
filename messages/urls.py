"""Addresses as they may be shown: in errors, logs and tables."""

import re

_OF_URLS = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(r"^[^/@:\s]*:[^/\s]*@")


def without_user_info(text: str) -> str:
    """Return ``text`` with the user and the password taken out of every URL in it.

    A text that is itself an address without a scheme (``user:password@host:port``) loses them too; ``git@host:path``,
    where the user is no secret, stays.
    """
    return _WITHOUT_SCHEME.sub("", _OF_URLS.sub(r"\1", text))
