"""How containers and this host reach each other: the API's address from inside, and the ports that are published."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING

from activities.backends import container_spec as spec_of
from activities.backends.docker_engine import Docker, Sdk, said
from activities.errors import BackendUnusable
from messages.urls import is_loopback, is_loopback_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SIOCGIFADDR = 0x8915
_BRIDGE_NAME = "com.docker.network.bridge.name"
_SET_PUBLIC_URL = "set TASKRUNNER_PUBLIC_URL to the URL at which containers reach the API"


class Reach:
    """The way between one daemon's containers and this host; see ``ContainerBackend`` for what it is given."""

    def __init__(
        self, docker: Docker, public_url: str | None, open_door: Callable[[str], Awaitable[int]] | None
    ) -> None:
        self._docker = docker
        self._public_url = public_url
        self._open_door = open_door

    def check_publish(self, address: str) -> None:
        """Raise ``BackendUnusable`` where what is published on ``address`` of Docker's machine cannot be reached."""
        if (remote := self._docker.remote_host) and is_loopback_host(address):
            raise BackendUnusable(
                f"Docker is on {remote}, and the ports of its containers are published on its loopback, which cannot "
                "be reached from here; set container.publish in the template to an address of that machine, or 0.0.0.0"
            )

    async def api_url(self) -> str:
        """Return how a container reaches the API. Raises ``BackendUnusable``, saying what to set."""
        if self._public_url:
            if is_loopback(self._public_url):
                raise BackendUnusable(
                    f"TASKRUNNER_PUBLIC_URL is {self._public_url}, which inside a container is the container itself; "
                    "set it to a URL at which containers reach the API"
                )
            return self._public_url
        if remote := self._docker.remote_host:
            raise BackendUnusable(
                f"Docker is on {remote}, from where the API of this machine cannot be found; set TASKRUNNER_PUBLIC_URL "
                "to the URL at which containers there reach the API"
            )
        if self._open_door is None:
            raise BackendUnusable(f"containers cannot reach an API on this machine's loopback; {_SET_PUBLIC_URL}")
        _, gateway = await self.bridge()
        try:
            port = await self._open_door(gateway)
        except OSError as e:
            raise BackendUnusable(
                f"the API cannot listen on {gateway}, the gateway of Docker's bridge ({e.strerror or e}); "
                f"{_SET_PUBLIC_URL}"
            ) from e
        return f"http://{spec_of.HOST_NAME}:{port}"

    async def bridge(self) -> tuple[str, str]:
        """Return the name of Docker's default bridge, and the address that this machine has on it.

        Raises ``BackendUnusable``, saying what to set.
        """
        from docker.errors import APIError

        def find(client: Sdk) -> tuple[str, str | None]:
            network = client.inspect_network("bridge")
            name: str = network["Options"].get(_BRIDGE_NAME, "docker0")
            for config in network["IPAM"]["Config"] or ():
                if gateway := config.get("Gateway"):
                    return name, gateway
            # A daemon that has just made its bridge does not know yet: the bridge itself does.
            return name, _address_of(name)

        try:
            name, gateway = await self._docker.call(find)
            if gateway:
                return name, gateway
            text = "it has no gateway"
        except APIError as e:
            text = said(e)
        raise BackendUnusable(f"Docker's default bridge cannot be used ({text}); {_SET_PUBLIC_URL}")


def _address_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
