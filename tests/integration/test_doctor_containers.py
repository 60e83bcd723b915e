"""What the doctor says of the daemon, and of containers that have to reach the API, with a real daemon."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cli.doctor import containers
from cli.doctor.check import Check, Status
from cli.doctor.containers import ContainerLook
from messages.settings import Settings
from tests.support.docker import IMAGE, Daemon, refusing, remote_daemon
from tests.support.doctor import is_told
from tests.support.port import http_server

pytest_plugins = ["tests.support.doctor"]


@pytest.fixture
def look(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[ContainerLook]:
    """A look from inside a container of the tests' own daemon."""
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    look = ContainerLook(3.0)
    yield look
    look.close()


@pytest.fixture
def with_image(tmp_path: Path) -> Settings:
    """Settings of a home with a template whose image the daemon has."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "own.yaml").write_text(f"{{name: own, backend: container, container: {{image: '{IMAGE}'}}}}")
    return Settings(home=tmp_path / "home", templates=templates)


def test_the_daemon_is_asked_as_the_worker_asks_it(look: ContainerLook, daemon: Daemon, tools: Path) -> None:
    """``tools`` is all that is on PATH: no program of Docker's is there."""
    assert list(tools.iterdir()) == []
    version = daemon.client().version()["Version"]
    is_told(look.daemon(), Status.OK, version, daemon.host)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DOCKER_HOST": "unix:///nowhere/docker.sock"}, ("does not answer", "start it, or set DOCKER_HOST")),
        ({"DOCKER_CONTEXT": "none-such"}, ("no Docker context", "docker context ls")),
    ],
    ids=["no daemon", "no context"],
)
def test_a_daemon_that_cannot_be_asked_is_told(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], words: tuple[str, ...]
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with closing(ContainerLook(0.5)) as look:
        is_told(look.daemon(), Status.BROKEN, *words)


def test_the_usual_daemon_is_started_as_it_usually_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "DEFAULT_ADDRESS", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with closing(ContainerLook(0.5)) as look:
        is_told(look.daemon(), Status.BROKEN, "does not answer", "sudo systemctl start docker")


def test_what_a_daemon_says_that_refuses_is_told(look: ContainerLook, with_image: Settings, daemon: Daemon) -> None:
    with refusing(daemon, "GET", "/version"):
        is_told(look.daemon(), Status.BROKEN, "Docker answers with an error", "not today", "journalctl")
        is_told(look.embedded(with_image, None, None), Status.NOT_NEEDED, "not looked at", "not today")
    for method, path in (("GET", "/_ping"), ("GET", "/images/"), ("POST", "/containers/create")):
        with refusing(daemon, method, path):
            is_told(look.daemon(), Status.OK)
            is_told(look.embedded(with_image, None, None), Status.BROKEN, "not today")


def elsewhere(settings: Settings, url: str | None) -> Settings:
    return settings.model_copy(update={"public_url": url})


def test_containers_that_will_reach_the_embedded_stack(look: ContainerLook, with_image: Settings) -> None:
    check = look.embedded(with_image, None, None)
    is_told(check, Status.OK, f"a container of {IMAGE} reached http://host.docker.internal:")


@contextmanager
def page(daemon: Daemon, text: bytes) -> Iterator[str]:
    """The URL, where containers reach it, of a server whose every page says the same."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

    with http_server(Page, daemon.gateway) as port:
        yield f"http://{daemon.gateway}:{port}"


OURS = b'{"status": "ok", "service": "taskrunner"}'


def test_containers_that_reach_a_service_at_its_url(look: ContainerLook, with_image: Settings, daemon: Daemon) -> None:
    with page(daemon, OURS) as url:
        is_told(look.of_services(elsewhere(with_image, url)), Status.OK, f"a container of {IMAGE} reached {url}")
    is_told(look.of_services(elsewhere(with_image, url)), Status.BROKEN, url, "refused", "TASKRUNNER_PUBLIC_URL")
    with page(daemon, b"<h1>It works!</h1>") as url:
        check = look.of_services(elsewhere(with_image, url))
    is_told(check, Status.BROKEN, url, "not taskrunner's API: <h1>It works!</h1>", "correct TASKRUNNER_PUBLIC_URL")
    is_told(look.of_services(elsewhere(with_image, None)), Status.BROKEN, "set TASKRUNNER_PUBLIC_URL")
    loopback = elsewhere(with_image, "http://localhost:8070")
    is_told(look.of_services(loopback), Status.BROKEN, "inside a container is the container itself")


def test_what_was_not_looked_at_is_told(
    with_image: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, nobody: int
) -> None:
    def check(host: str, public_url: str | None = None) -> Check:
        monkeypatch.setenv("DOCKER_HOST", host)
        return ContainerLook(1.0).embedded(elsewhere(with_image, public_url), None, None)

    away = check(f"unix://{daemon.folder}/none")
    is_told(away, Status.NOT_NEEDED, "not looked at: Docker does not answer at unix://")
    is_told(check(f"tcp://127.0.0.1:{nobody}"), Status.NOT_NEEDED, "not looked at", str(nobody))
    unanswered = check(daemon.host, "http://api.example:8070")
    is_told(unanswered, Status.NOT_NEEDED, "no service runs that would answer at http://api.example", "taskrunner dev")


def test_a_remote_daemon_needs_a_url_and_ports_that_can_be_reached(
    with_image: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote_daemon(daemon) as host, page(daemon, OURS) as url:
        monkeypatch.setenv("DOCKER_HOST", host)
        look = ContainerLook(3.0)
        is_told(look.embedded(with_image, None, None), Status.BROKEN, host, "set TASKRUNNER_PUBLIC_URL")
        there = elsewhere(with_image, url)
        is_told(look.of_services(there), Status.BROKEN, "published on its loopback", "set container.publish")
        assert with_image.templates
        (with_image.templates / "there.yaml").write_text(
            f"{{name: there, backend: container, container: {{image: '{IMAGE}', publish: 0.0.0.0}}}}"
        )
        is_told(look.of_services(there), Status.OK, url)
        look.close()
