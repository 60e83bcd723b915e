"""Looking whether containers work on a machine, before a task needs one."""

import asyncio
import base64
import contextlib
import gc
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NameResolutionError

from activities.backends.container_check import Inside, Looked, NothingToLookWith, check_callback
from activities.backends.docker_engine import Docker, reason_of
from activities.errors import BackendAway, BackendUnusable
from tests.support.docker import IMAGE, Daemon, build_image, refusing, running_daemon, snapshot


class Looking:
    """Looks from inside a container of one daemon."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.docker = Docker(environ)
        self.inside = Inside(self.docker)

    async def look(self, *images: str, public_url: str | None = None, door: int | None = 0) -> Looked:
        async def open_door(address: str) -> int:
            assert door is not None
            return door

        return await check_callback(
            self.inside,
            self.docker,
            images,
            seconds=3.0,
            public_url=public_url,
            open_door=None if door is None else open_door,
        )


@pytest.fixture
async def looking(daemon: Daemon) -> AsyncIterator[Looking]:
    looking = Looking(daemon.environ)
    yield looking
    looking.inside.close()
    looking.docker.close()


@pytest.fixture
def mute(daemon: Daemon) -> Iterator[str]:
    """The URL of a server, where containers reach it, that takes connections and never answers."""
    with socket.create_server((daemon.gateway, 0), backlog=10) as server:
        yield f"http://{daemon.gateway}:{server.getsockname()[1]}"


async def test_a_container_calls_back(looking: Looking) -> None:
    looked = await looking.look(IMAGE)
    assert looked.image == IMAGE
    assert looked.url.startswith("http://host.docker.internal:")


async def test_the_listener_that_is_there_is_the_one_that_is_called(looking: Looking, daemon: Daemon) -> None:
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readline()).startswith(b"GET /healthz ")
        asked.set()
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        writer.close()

    async with await asyncio.start_server(answer, daemon.gateway, 0) as server:
        port = server.sockets[0].getsockname()[1]
        looked = await looking.look(IMAGE, door=port)
        assert asked.is_set()
        assert looked == Looked(IMAGE, f"http://host.docker.internal:{port}", "no")  # any answer is one


@pytest.fixture
def firewall(daemon: Daemon) -> Iterator[Callable[..., None]]:
    """One that lets nothing in from Docker's bridge; what is returned puts a rule before it."""
    added: list[tuple[str, ...]] = []

    def add(*rule: str) -> None:
        subprocess.run(["iptables", "-I", *rule], check=True)
        added.append(rule)

    add("INPUT", "-i", daemon.bridge, "-j", "DROP")
    yield add
    for rule in added:
        subprocess.run(["iptables", "-D", *rule], check=True)


async def test_a_firewall_is_told_with_the_command_that_mends_it(
    looking: Looking, firewall: Callable[..., None]
) -> None:
    with pytest.raises(BackendUnusable, match=r"a container cannot reach .*timed out.*a firewall of this") as told:
        await looking.look(IMAGE)
    mend = shlex.split(str(told.value).partition("; ")[2])
    assert mend[:3] == ["sudo", "iptables", "-I"]
    firewall(*mend[3:])
    await looking.look(IMAGE)


async def test_a_url_at_which_nobody_answers_is_told(looking: Looking, daemon: Daemon, mute: str) -> None:
    with socket.socket() as free:
        free.bind((daemon.gateway, 0))
        url = f"http://{daemon.gateway}:{free.getsockname()[1]}"
        with pytest.raises(
            BackendUnusable, match=rf"a container cannot reach {url} \(.*refused.*TASKRUNNER_PUBLIC_URL"
        ):
            await looking.look(IMAGE, public_url=url)
    with pytest.raises(BackendUnusable, match=rf"a container cannot reach {mute} \(timed out\)"):
        await looking.look(IMAGE, public_url=mute)
    with pytest.raises(BackendUnusable, match="which inside a container is the container itself"):
        await looking.look(IMAGE, public_url="http://127.0.0.1:8070")
    with pytest.raises(BackendUnusable, match="set TASKRUNNER_PUBLIC_URL"):
        await looking.look(IMAGE, door=None)


_WGET = r"""#!/usr/bin/perl
use IO::Socket::INET;
my ($host, $port, $path) = $ARGV[-1] =~ m{^http://([^:/]+):(\d+)(/.*)$};
my $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port) or die "wget: $!\n";
print $socket "GET $path HTTP/1.0\r\n\r\n";
my ($head, $body) = split /\r\n\r\n/, join("", <$socket>), 2;
$head =~ /^HTTP.1.. 200/ or die "wget: server returned error: " . (split /\r\n/, $head)[0] . "\n";
print $body;
"""


async def test_any_image_will_do_that_can_ask(looking: Looking, daemon: Daemon) -> None:
    """The template's image is not there: those that are there are tried, the smallest first."""
    looked = await looking.look("not-there:1")
    assert looked.image != "not-there:1"
    script = base64.b64encode(_WGET.encode()).decode()
    wget = f"RUN echo {script} | base64 -d > /usr/bin/wget && chmod 755 /usr/bin/wget && rm /usr/bin/python3*"
    image = build_image(daemon, wget)
    host, _, port = looked.url.removeprefix("http://").partition(":")
    assert host == "host.docker.internal"
    with socket.create_server((daemon.gateway, 0)) as closed:
        port = closed.getsockname()[1]
    said = await looking.inside.call(image, f"http://{host}:{port}/healthz", 3.0, knows_python=False)
    assert said == "error wget: Connection refused"
    with pytest.raises(BackendUnusable, match=f"a container of {image} cannot be run: .*python3.*docker run --rm"):
        await looking.look(image)


async def test_without_an_image_it_says_so() -> None:
    with running_daemon() as empty:
        looking = Looking(empty.environ)
        with pytest.raises(NothingToLookWith, match=r"python:3\.13"):
            await looking.look("python:3.13")
        looking.docker.close()


async def test_a_daemon_that_is_away_is_told(daemon: Daemon) -> None:
    looking = Looking({**daemon.environ, "DOCKER_HOST": f"unix://{daemon.folder}/none"})
    with pytest.raises(BackendAway, match="Docker does not answer at unix://"):
        await looking.look(IMAGE)
    remote = Looking({**daemon.environ, "DOCKER_HOST": "tcp://192.0.2.1:2375"})
    with pytest.raises(BackendUnusable, match=r"Docker is on 192\.0\.2\.1.*set TASKRUNNER_PUBLIC_URL"):
        await remote.look(IMAGE)


async def test_one_that_is_closed_leaves_no_container(looking: Looking, daemon: Daemon, mute: str) -> None:
    """At Ctrl-C and at the end of our patience: closed while its container waits for an answer."""
    before = snapshot(daemon)
    with contextlib.closing(daemon.client().events(filters={"event": ["start"]}, decode=True)) as events:
        look = asyncio.ensure_future(looking.look(IMAGE, public_url=mute))
        started: dict[str, Any] = await asyncio.to_thread(next, iter(events))
        assert started["Actor"]["Attributes"]["name"].startswith("tr-check-")
        await asyncio.to_thread(looking.inside.close)
        assert snapshot(daemon) == before
        with pytest.raises(Exception, match=r".") as told:
            await look
        assert isinstance(told.value, NothingToLookWith | BackendUnusable)
    with pytest.raises(BackendUnusable, match="ended"):
        await looking.look(IMAGE)


async def test_close_waits_for_a_container_that_is_just_being_made(looking: Looking, daemon: Daemon) -> None:
    before = snapshot(daemon)
    made, go = threading.Event(), threading.Event()
    client = looking.docker.connect()
    create = client.create_container

    def slow(*args: Any, **options: Any) -> Any:
        made.set()
        go.wait(30)
        return create(*args, **options)

    client.create_container = slow
    looking.docker._client = client
    look = asyncio.ensure_future(looking.look(IMAGE))
    await asyncio.to_thread(made.wait, 30)
    closing = asyncio.ensure_future(asyncio.to_thread(looking.inside.close))
    go.set()
    await closing
    assert snapshot(daemon) == before
    with pytest.raises(NothingToLookWith):
        await look


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("unix:///nowhere/docker.sock", "No such file or directory"),
    ],
)
def test_why_a_daemon_does_not_answer_is_told(host: str, reason: str) -> None:
    with pytest.raises(BackendAway, match=rf"^Docker does not answer at {re.escape(host)} \({reason}\); start it"):
        Docker({"DOCKER_HOST": host}).call_blocking(lambda client: client.version())


def test_a_name_that_nobody_knows_is_told() -> None:
    unknown = NameResolutionError(
        "nowhere", HTTPConnection("nowhere"), socket.gaierror(-2, "Name or service not known")
    )
    asked = MaxRetryError(HTTPConnectionPool("nowhere", 2375), "/version", unknown)
    assert reason_of(asked) == "Name or service not known"


@contextlib.contextmanager
def until_gone(daemon: Daemon) -> Iterator[None]:
    """Wait at the end for the next container that goes."""
    with contextlib.closing(daemon.client().events(filters={"event": ["destroy"]}, decode=True)) as events:
        yield
        next(events)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
async def test_an_answer_counts_although_the_container_cannot_be_removed(daemon: Daemon) -> None:
    with refusing(daemon, "DELETE", "/containers/"), until_gone(daemon):
        looking = Looking(daemon.environ)
        assert (await looking.look(IMAGE)).image == IMAGE
        looking.docker.close()
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a socket open
async def test_a_daemon_that_hangs_at_the_removal_holds_nothing_up(
    looking: Looking, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is there, and the close that follows has nothing to wait for."""
    client = looking.docker.connect(timeout=1.0)
    remove = client.remove_container
    with until_gone(daemon), contextlib.ExitStack() as hanging:

        def hang(*args: Any, **options: Any) -> None:
            hanging.enter_context(daemon.frozen())
            remove(*args, **options)

        client.remove_container = hang
        looking.docker._client = client
        assert (await looking.look(IMAGE)).image == IMAGE
        asked: list[float] = []
        monkeypatch.setattr(looking.docker, "connect", lambda *, timeout: asked.append(timeout))
        looking.inside.close()
        assert asked == []
    client.close()
    gc.collect()


async def test_what_a_killed_look_did_not_start_is_removed_by_a_later_one(
    looking: Looking, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is young may be somebody's who is about to start it; what is not of a look is never touched."""
    client = looking.docker.connect()
    create = client.create_container

    def create_two(*args: Any, **options: Any) -> None:
        create(*args, **options)
        create(*args, **{**options, "name": "tr-check-left"})

    client.create_container = create_two
    looking.docker._client = client
    await looking.look(IMAGE)
    client.create_container = create
    daemon.client().create_container(IMAGE, "true", name="not-of-a-look")
    try:
        await looking.look(IMAGE)
        assert {"/tr-check-left", "/not-of-a-look"} <= snapshot(daemon)["containers"]
        monkeypatch.setattr("activities.backends.container_check.LEFT_SECONDS", 0)
        await looking.look(IMAGE)
        assert "/tr-check-left" not in snapshot(daemon)["containers"]
        assert "/not-of-a-look" in snapshot(daemon)["containers"]
    finally:
        daemon.client().remove_container("not-of-a-look")
