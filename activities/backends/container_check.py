"""Whether containers work here: one is run that calls this machine back, as a workspace's agent would."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING

from activities.backends import container_spec as spec_of
from activities.backends.container_reach import Reach
from activities.backends.docker_engine import Docker, Sdk, said
from activities.errors import ActivityFailure, BackendUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping

_CALL = """
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=5)
except urllib.error.HTTPError:
    pass
except OSError as e:
    sys.exit(str(getattr(e, "reason", e)))
"""
"""Any answer is one; what does not answer ends it with the reason as its last line."""


async def check_callback(environ: Mapping[str, str], image: str, *, public_url: str | None = None) -> str:
    """Run a container of ``image`` (which is there, and has Python) and return the URL at which it reached us.

    That is ``public_url``, whose service has to run, or a listener that is opened for it on Docker's bridge. Raises
    ``BackendUnusable``, saying what to do; the container is gone either way.
    """
    docker = Docker(environ)
    async with contextlib.AsyncExitStack() as parts:
        parts.callback(docker.close)

        async def open_door(address: str) -> int:
            server = await asyncio.start_server(_answer, address, 0)
            parts.callback(server.close)
            return int(server.sockets[0].getsockname()[1])

        try:
            url = await Reach(docker, public_url, open_door).api_url()
            trouble = await docker.call(lambda client: _call_from_inside(client, image, url))
        except BackendUnusable:
            raise
        except ActivityFailure as e:
            raise BackendUnusable(str(e)) from e
    if trouble:
        raise BackendUnusable(
            f"a container cannot reach {url} ({trouble}); let Docker's bridge through the firewall of this machine, or "
            "set TASKRUNNER_PUBLIC_URL to the URL at which containers reach the API"
        )
    return url


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()


def _call_from_inside(client: Sdk, image: str, url: str) -> str:
    """Return why ``url`` cannot be reached from a container; empty where it can."""
    from docker.errors import APIError

    name = f"tr-check-{secrets.token_hex(4)}"
    host_config = client.create_host_config(
        cap_drop=["ALL"], security_opt=["no-new-privileges"], extra_hosts={spec_of.HOST_NAME: "host-gateway"}
    )
    try:
        client.create_container(image, [_CALL, url], name=name, host_config=host_config, entrypoint=["python3", "-c"])
        try:
            client.start(name)
            code = int(client.wait(name)["StatusCode"])
            text = client.logs(name, tail=1).decode("utf-8", "replace").strip()
        finally:
            client.remove_container(name, force=True, v=True)
    except APIError as e:
        raise BackendUnusable(f"a container of {image} cannot be run: {said(e)}") from e
    return (text or f"exit code {code}") if code else ""
