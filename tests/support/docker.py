"""A real Docker daemon for tests, with its own data, socket and bridge, and images that no registry is needed for.

PYTEST_DONT_REWRITE: test modules import this before pytest makes it a plugin.
"""

import asyncio
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest

from activities.backends.container_files import Owner, pack
from activities.backends.contract import Compute
from tests.support.network import within_reach

IMAGE = "taskrunner-test:python"
_PACKAGES = ("python3", "perl-base")
_SUITE = "bookworm"
_LEFT_OUT = ("./usr/share/doc", "./usr/share/locale", "./usr/share/man", "./var/lib/apt", "./var/cache", "./dev")
TOLD = "until [ -e /told ]; do sleep 0.1; done"
"""What a program in a container waits with until :func:`tell`."""
UNTIL_TOLD = f"{TOLD}; echo no key found >&2; exit 3"
"""A program of an image that runs until :func:`end`."""

_SERVER = """
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die $!;
while (my $client = $server->accept) {
    while (<$client>) { last if /^\\r?$/ }
    my ($status, $body) = -e "/taskrunner/checkout/go" ? ("200 OK", '{"status":"ok"}') : ("503 Not yet", "starting");
    print $client "HTTP/1.1 $status\\r\\nContent-Length: ", length($body), "\\r\\nConnection: close\\r\\n\\r\\n$body";
    close $client;
}
"""
BARE_SERVER = f"CMD {json.dumps(['perl', '-e', ' '.join(_SERVER.split())])}"
"""A line of an image that listens on 8080 at once, and is healthy when there is a file ``go`` in its checkout."""

_READY = b"API listen on"


class Daemon:
    """A daemon of this test run. It can be killed and started again on the same data."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.bridge = f"trtest{number}"
        self.gateway = f"10.213.{number}.1"
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    @property
    def environ(self) -> dict[str, str]:
        """The environment of whoever uses it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return {**kept, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.folder / "config")}

    def client(self) -> Any:
        """Return an untyped client of the daemon, closed with it."""
        if self._client is None:
            self._client = docker.APIClient(base_url=self.host, version="auto", timeout=60)
        return self._client

    def start(self, *options: str) -> None:
        """Start it and return when it answers."""
        argv = [
            *("dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"),
            *("--pidfile", f"{self.folder}/pid", "--host", self.host, "--bridge", self.bridge),
            *options,
        ]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        said = []
        assert self.process.stderr
        for line in self.process.stderr:
            said.append(line)
            if _READY in line:
                break
        else:
            self.process.stderr.close()
            raise AssertionError(f"dockerd did not start: {b''.join(said[-20:]).decode(errors='replace')}")
        threading.Thread(target=_drain, args=(self.process.stderr,), daemon=True).start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it: in good order, or with SIGKILL as in a crash, which leaves containers running."""
        assert self.process
        if self._client is not None:
            self._client.close()
            self._client = None
        self.process.send_signal(number)
        self.process.wait(60)
        self._forget_pids()
        self.process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it hang: it takes connections, and answers nobody."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _forget_pids(self) -> None:
        """Remove what a killed daemon has left: where nobody reaps its zombies, they would pass for living ones."""
        for path in (self.folder / "pid", self.folder / "exec/containerd/containerd.pid"):
            path.unlink(missing_ok=True)


@contextmanager
def remote_daemon(daemon: Daemon) -> Iterator[str]:
    """The daemon as if it were on another machine: yields its ``DOCKER_HOST``, an address that is no loopback."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as there:
                there.connect(str(daemon.socket))
                back = threading.Thread(target=copy, args=(there, self.request))
                back.start()
                copy(self.request, there)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server((daemon.gateway, 0), Forward) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"tcp://{daemon.gateway}:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def refusing(daemon: Daemon, method: str, path: str) -> Iterator[None]:
    """The daemon with an authorization plugin that refuses such requests, ``path`` a part of theirs, to everybody.

    It is started again before and after: no container may run.
    """

    class Plugin(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
            refused = asked.get("RequestMethod") == method and path in asked.get("RequestUri", "")
            answer = {"Implements": ["authz"], "Allow": not refused, "Msg": "not today" if refused else ""}
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    folder = Path("/run/docker/plugins")  # the one place where dockerd looks for sockets
    folder.mkdir(parents=True, exist_ok=True)
    name = f"trtest-{uuid.uuid4().hex[:8]}"
    path_of_socket = folder / f"{name}.sock"
    with Server(str(path_of_socket), Plugin) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            daemon.stop()
            daemon.start("--authorization-plugin", name)
            yield
        finally:
            if daemon.process:
                daemon.stop()
            daemon.start()
            server.shutdown()
            path_of_socket.unlink()


def _drain(stream: Any) -> None:
    with stream:
        for _ in stream:
            pass


def why_not() -> str | None:
    """Return why no daemon can be started here; None where one can."""
    if os.geteuid() != 0:
        return "a Docker daemon of its own needs root"
    for program in ("dockerd", "containerd", "runc", "iptables", "ip", "debootstrap"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install docker.io iptables iproute2 debootstrap)"
    return None


@contextmanager
def running_daemon() -> Iterator[Daemon]:
    """A daemon with nothing in it, for as long as the context lasts."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="tr-docker-", ignore_cleanup_errors=True) as folder, _bridge() as number:
        daemon = Daemon(Path(folder), number)
        (Path(folder) / "config").mkdir()
        daemon.start()
        try:
            yield daemon
        finally:
            if daemon.process:
                daemon.stop()
            _unmount(folder)


@contextmanager
def _bridge() -> Iterator[int]:
    """A bridge that no other daemon of this machine uses."""
    for number in range(1, 255):
        name = f"trtest{number}"
        if subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False).returncode:
            continue
        try:
            subprocess.run(["ip", "addr", "add", f"10.213.{number}.1/24", "dev", name], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            with within_reach(f"10.213.{number}.0/24"):
                yield number
        finally:
            subprocess.run(["ip", "link", "delete", name], check=True)
        return
    raise AssertionError("no bridge can be made")


def _unmount(folder: str) -> None:
    """Unmount what a daemon that was killed has left mounted."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(folder)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def base_tree() -> Path:
    """Return a tar of a small Debian with Python, built from packages once and then kept in the cache."""
    recipe = hashlib.sha256(repr((_SUITE, _PACKAGES, _LEFT_OUT)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskrunner" / "images"
    target = cache / f"debian-python-{recipe}.tar"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tr-image-") as folder:
            tree = Path(folder, "tree")
            argv = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(tree)]
            made = subprocess.run(argv, capture_output=True, check=False)
            assert made.returncode == 0, made.stdout[-2000:].decode(errors="replace")
            partial = Path(folder, "tree.tar")
            left_out = [f"--exclude={path}/*" for path in _LEFT_OUT]
            subprocess.run(["tar", "-C", str(tree), *left_out, "-cf", str(partial), "."], check=True)
            shutil.move(partial, cache / f".{target.name}.{os.getpid()}")
            (cache / f".{target.name}.{os.getpid()}").replace(target)
    return target


def import_image(daemon: Daemon, name: str = IMAGE) -> str:
    """Have the base image in the daemon under ``name``."""
    repository, _, tag = name.partition(":")
    with base_tree().open("rb") as tree:
        daemon.client().import_image_from_data(tree, repository=repository, tag=tag)
    return name


def build_image(daemon: Daemon, *lines: str, base: str = IMAGE) -> str:
    """Build an image on ``base`` from lines of a Dockerfile and return its name."""
    text = "\n".join([f"FROM {base}", *lines])
    name = f"taskrunner-test:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    for line in daemon.client().build(fileobj=io.BytesIO(text.encode()), tag=name, decode=True, rm=True):
        assert "error" not in line, line
    return name


def snapshot(daemon: Daemon) -> dict[str, set[str]]:
    """Return every container, network and volume there is."""
    client = daemon.client()
    return {
        "containers": {entry["Names"][0] for entry in client.containers(all=True)},
        "networks": {entry["Name"] for entry in client.networks()},
        "volumes": {entry["Name"] for entry in client.volumes()["Volumes"] or ()},
    }


async def tell(daemon: Daemon, name: str) -> None:
    """Make ``/told`` in a container, which a program in it waits for."""
    told = io.BytesIO()
    pack(PurePosixPath("told"), {}, None, Owner(0, 0), told)
    await asyncio.to_thread(daemon.client().put_archive, name, "/", told.getvalue())


async def end(daemon: Daemon, compute: Compute) -> None:
    """Let a container that runs ``UNTIL_TOLD`` end, and return when it has."""
    await tell(daemon, compute.name)
    await asyncio.to_thread(daemon.client().wait, compute.name)


@contextmanager
def recorded(daemon: Daemon) -> Iterator[Counter[tuple[str, str]]]:
    """Count what happens to containers meanwhile: by what (``create``, ``start``, ``destroy``) and by name.

    The count is whole when the context has ended. The daemon itself remembers no more than 256 events.
    """
    counted: Counter[tuple[str, str]] = Counter()
    last = f"last-{uuid.uuid4().hex[:8]}"
    client = docker.APIClient(base_url=daemon.host, version="auto", timeout=None)
    events = client.events(filters={"type": "container", "event": ["create", "start", "destroy"]}, decode=True)

    def follow() -> None:
        for event in events:
            if (name := event["Actor"]["Attributes"]["name"]) == last:
                return
            counted[event["Action"], name] += 1

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    try:
        yield counted
    finally:
        daemon.client().create_container(IMAGE, "true", name=last)
        daemon.client().remove_container(last)
        following.join(10)
        events.close()
        client.close()


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests, with the base image in it."""
    with running_daemon() as daemon:
        import_image(daemon)
        yield daemon


@pytest.fixture
def leaves_no_container(daemon: Daemon) -> Iterator[None]:
    """See that a test leaves no container, network or volume; what it left is removed, so that it fails no other."""
    before = snapshot(daemon)
    yield
    after = snapshot(daemon)
    for name in after["containers"] - before["containers"]:
        daemon.client().remove_container(name, force=True, v=True)
    assert after == before
