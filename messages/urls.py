"""Addresses: how they may be shown in errors, logs and tables, and which lead to this machine.

A key press that completes a word waits for this to load, so nothing is imported here that takes long.
"""

import ipaddress
import re
from urllib.parse import urlsplit

_OF_URLS = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(r"^[^/@:\s]*:[^/\s]*@")


def without_user_info(text: str) -> str:
    """Return ``text`` with the user and the password taken out of every URL in it.

    A text that is itself an address without a scheme (``user:password@host:port``) loses them too; ``git@host:path``,
    where the user is no secret, stays.
    """
    return _WITHOUT_SCHEME.sub("", _OF_URLS.sub(r"\1", text))


def is_loopback(url: str) -> bool:
    """Tell whether ``url`` leads to whoever uses it: to ``localhost``, 127.0.0.0/8 or ::1. No name is looked up.

    What is shown to such a service (a token) or of one (plain http) stays on the machine.
    """
    try:
        return is_loopback_host(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_loopback_host(host: str) -> bool:
    """Tell whether ``host``, a name in small letters or an address without brackets and port, is the machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
