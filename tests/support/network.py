"""Network is off in tests: what this process connects to has to be on this machine, or in a network that a test made.

Python reports each connect and each look-up of a name before it happens (an audit event), whichever library makes it.
Programs that tests start, and libraries that connect without Python (libpq, Temporal's core), are not covered: they are
given addresses of this machine.
"""

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MACHINE = ("127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128")
_networks = [ipaddress.ip_network(network) for network in _MACHINE]
_names = {"", "localhost", socket.gethostname()}
_refused: list[str] = []
_is_on = False


class NetworkIsOff(Exception):
    """A test, or what it tests, wanted to leave this machine."""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is written as, None where it is a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_here(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host in _names
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in _networks)


def _asked_for(event: str, args: tuple[Any, ...]) -> str | None:
    """Return the host that an event is about, None where it asks nothing of another machine."""
    if event in {"socket.connect", "socket.sendto"}:
        used, address = args
        return address[0] if used.family in {socket.AF_INET, socket.AF_INET6} else None
    if event == "socket.getaddrinfo" and args[0]:
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
        return host if _address(host) is None else None
    return None


def _look(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith("socket.") and not _is_on and (host := _asked_for(event, args)) and not _is_here(host):
        _refused.append(host)
        raise NetworkIsOff(f"{host} is not on this machine; a test that has to reach it is marked with network")


sys.addaudithook(_look)  # for good: a hook cannot be taken away


def take_refused() -> list[str]:
    """Return whom it was refused to reach since the last time: who catches every exception has not noticed."""
    refused = list(_refused)
    _refused.clear()
    return refused


@contextmanager
def network_on() -> Iterator[None]:
    """Let everything be reached while the context lasts."""
    global _is_on  # noqa: PLW0603 - one process, one hook
    _is_on = True
    try:
        yield
    finally:
        _is_on = False


@contextmanager
def within_reach(network: str) -> Iterator[None]:
    """Let a network that a test made (a bridge, a namespace), as 10.1.2.0/24, be reached while the context lasts."""
    added = ipaddress.ip_network(network)
    _networks.append(added)
    try:
        yield
    finally:
        _networks.remove(added)
