"""Whether containers work here: one is run that calls this machine back, as a workspace's agent would."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from activities.backends import container_spec as spec_of
from activities.backends.container_reach import Reach
from activities.backends.docker_engine import Docker, Sdk, said, status_of
from activities.errors import BackendUnusable
from activities.threads import in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

REMOVAL_SECONDS = 3.0
"""How long :meth:`Inside.close` waits at most until the container is gone."""

LEFT_SECONDS = 60
"""After which a container that was made for a look and not started is nobody's any more."""
_OTHERS = 3
"""How many images are tried of which nothing is known, the smallest first."""
_SHOWN_CHARS = 200

_PYTHON = """
import signal, sys, time, urllib.error, urllib.request
signal.alarm(int(sys.argv[2]))
try:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a workspace's agent uses none
        answer = opener.open(sys.argv[1], timeout=int(sys.argv[2]) / 2).read(300)
    except urllib.error.HTTPError as e:
        answer = e.read(300)
    print("answer", " ".join(answer.decode("utf-8", "replace").split()), flush=True)
except Exception as e:
    print("error", " ".join(str(getattr(e, "reason", e)).split()), flush=True)
time.sleep(60)
"""
_SHELL = """
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY
(sleep "$2"; kill -9 $$) >/dev/null 2>&1 &
if command -v python3 >/dev/null; then exec python3 -c "$3" "$1" "$2"; fi
if command -v wget >/dev/null; then said=$(wget -q -T $(($2 / 2)) -O - "$1" 2>&1)
elif command -v curl >/dev/null; then said=$(curl -sS -m $(($2 / 2)) "$1" 2>&1)
else echo nothing; exit; fi
if [ $? = 0 ]; then echo answer $said; else echo error $said; fi
sleep 60
"""
"""Each prints one line: what answered, or why nothing did. It waits then to be read and removed, but not for ever."""


@dataclass(frozen=True)
class Looked:
    """A look from inside a container: of which image, at which URL, and what the answer began with."""

    image: str
    url: str
    answer: str


class NothingToLookWith(Exception):
    """No image is there from which one could look; the text says which would do."""


class Inside:
    """Calls a URL from inside containers, one at a time, and leaves none of them, whenever it is closed.

    Where nobody closes it (we were killed), the container ends by itself within its seconds, and Docker removes it;
    one that was not started yet is removed by the next look.
    """

    def __init__(self, docker: Docker) -> None:
        self._docker = docker
        self._name = ""
        self._closed = False
        self._idle = threading.Condition()

    async def call(self, image: str, url: str, seconds: float, *, knows_python: bool) -> str | None:
        """Return what the container said: ``answer …`` or ``error …``; None where the image cannot say anything."""

        def call() -> str | None:
            return self._docker.call_blocking(lambda client: self._call(client, image, url, seconds, knows_python))

        return await in_daemon_thread(call)  # what the container says is waited for as long as it runs

    def close(self) -> None:
        """End a call that runs; return when its container is gone, or Docker has not managed that in some seconds."""
        with self._idle:
            self._closed = True
            if not self._name:
                return
        with contextlib.suppress(Exception):  # the call that it ends says what went wrong
            client = self._docker.connect(timeout=REMOVAL_SECONDS)
            with contextlib.closing(client):
                _remove(client, self._name)
        with self._idle:
            self._idle.wait_for(lambda: not self._name, REMOVAL_SECONDS)

    def _call(self, client: Sdk, image: str, url: str, seconds: float, knows_python: bool) -> str | None:
        from docker.errors import APIError

        limit = str(max(2, int(seconds)))
        argv = ["python3", "-c", _PYTHON] if knows_python else ["sh", "-c", _SHELL, "sh"]
        host_config = client.create_host_config(
            auto_remove=True,
            init=True,  # else nothing would end it in time: the first process of a container ignores alarms
            log_config={"type": "json-file"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            extra_hosts={spec_of.HOST_NAME: "host-gateway"},
        )
        name = f"tr-check-{secrets.token_hex(4)}"
        with self._idle:
            if self._closed:
                raise BackendUnusable("the look was ended; taskrunner doctor, again")
            self._name = name
        said_inside: Iterable[bytes] = ()
        try:
            command = [url, limit] if knows_python else [url, limit, _PYTHON]
            client.create_container(
                image,
                command,
                name=name,
                labels={spec_of.CHECK: ""},
                host_config=host_config,
                entrypoint=argv,
                healthcheck={"test": ["NONE"]},
                use_config_proxy=False,
            )
            if self._closed:
                return None
            client.start(name)
            said_inside = client.logs(name, stream=True, follow=True)
            line = _first_line(said_inside)
            if line.startswith(("answer", "error")):
                return line
        except APIError as e:
            line = said(e)
        finally:
            with contextlib.suppress(Exception):  # what it said counts: it also ends by itself
                _remove(client, name)
                for _ in said_inside:  # to its end, so that its connection is closed
                    pass
            with self._idle:
                self._name = ""
                self._idle.notify_all()
        if self._closed or not knows_python:
            return None
        raise BackendUnusable(
            f"a container of {image} cannot be run: {line or 'it said nothing'}; see why: docker run --rm --entrypoint "
            f"python3 {image} --version"
        )


async def check_callback(
    inside: Inside,
    docker: Docker,
    images: Sequence[str],
    *,
    seconds: float,
    public_url: str | None = None,
    open_door: Callable[[str], Awaitable[int]] | None = None,
) -> Looked:
    """Look from inside a container how the API is reached: it takes ``seconds`` at most, but what Docker takes.

    ``images`` have Python; the first that is there is used, or else any image that can ask for a URL. The URL is
    ``public_url``, whose service has to run, or a listener on the gateway of Docker's bridge: that of ``open_door``, or
    where it returns 0 one that is opened for the look. Raises ``BackendAway``, ``BackendUnusable``, saying what to do,
    and :class:`NothingToLookWith`.
    """
    async with contextlib.AsyncExitStack() as parts:

        async def listen(address: str) -> int:
            assert open_door
            if port := await open_door(address):
                return port
            server = await asyncio.start_server(_answer, address, 0)
            parts.callback(server.close)
            return int(server.sockets[0].getsockname()[1])

        url = await Reach(docker, public_url, listen if open_door else None).api_url()
        await docker.call(_remove_left)
        for image, knows_python in await docker.call(lambda client: _candidates(client, images)):
            said_inside = await inside.call(image, f"{url}/healthz", seconds, knows_python=knows_python)
            kind, _, text = (said_inside or "").partition(" ")
            if kind == "answer" or (kind == "error" and "HTTP/1" in text):
                return Looked(image, url, text[:_SHOWN_CHARS])
            if kind == "error":
                raise await _not_reached(docker, url, text[:_SHOWN_CHARS], is_public=public_url is not None)
    raise NothingToLookWith(images[0] if images else "python:3.13")


def _remove_left(client: Sdk) -> None:
    """Remove what a look has left that was killed before it started its container: ``auto_remove`` acts at an end."""
    from docker.errors import APIError

    with contextlib.suppress(APIError):  # what keeps them keeps nobody from looking
        left: list[dict[str, Any]] = client.containers(all=True, filters={"label": spec_of.CHECK, "status": "created"})
        if not left:
            return
        now = datetime.fromisoformat(client.info()["SystemTime"]).timestamp()  # the daemon's: it may be elsewhere
        for entry in left:
            if now - entry["Created"] >= LEFT_SECONDS:
                with contextlib.suppress(APIError):
                    client.remove_container(entry["Id"], v=True)


def _candidates(client: Sdk, images: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the images to look with, and of each whether Python is known to be in it."""
    from docker.errors import APIError

    for image in images:
        with contextlib.suppress(APIError):
            client.inspect_image(image)
            return [(image, True)]
    found: list[dict[str, Any]] = sorted(client.images(), key=lambda entry: entry["Size"])
    return [(tags[0], False) for entry in found if (tags := entry.get("RepoTags"))][:_OTHERS]


async def _not_reached(docker: Docker, url: str, why: str, *, is_public: bool) -> BackendUnusable:
    trouble = f"a container cannot reach {url} ({why or 'no answer'})"
    if is_public:
        return BackendUnusable(
            f"{trouble}; start the API there, or set TASKRUNNER_PUBLIC_URL to the URL at which containers reach it"
        )
    bridge, gateway = await Reach(docker, None, None).bridge()
    if shutil.which("ufw"):
        command = f"sudo ufw allow in on {bridge} to {gateway}"
    elif shutil.which("firewall-cmd"):
        command = f"sudo firewall-cmd --zone=trusted --add-interface={bridge}"
    else:
        command = f"sudo iptables -I INPUT -i {bridge} -d {gateway} -p tcp -j ACCEPT"
    return BackendUnusable(f"{trouble}: a firewall of this machine keeps Docker's bridge out; {command}")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()


def _first_line(chunks: Any) -> str:
    text = b""
    for chunk in chunks:
        text += chunk
        if b"\n" in text:
            break
    return text.decode("utf-8", "replace").partition("\n")[0].strip()


def _remove(client: Sdk, name: str) -> None:
    """Remove it, with its anonymous volumes, and return when it is gone; Docker may be at it already."""
    from docker.errors import APIError, NotFound

    try:
        client.remove_container(name, force=True, v=True)
    except NotFound:
        return
    except APIError as e:
        if status_of(e) != 409:
            raise
        with contextlib.suppress(NotFound):
            client.wait(name, timeout=REMOVAL_SECONDS, condition="removed")
