"""To whom the commands show the API token of the home, each by its own way of asking."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import click
import pytest

from cli import completing
from cli.client import ApiClient
from cli.discovery import find_service
from cli.doctor.examination import Role, find_setup
from cli.doctor.service import check_service
from cli.errors import CliError
from messages.settings import read_settings
from tests.support.port import http_server

OF_THE_HOME = "tr_of_the_home"


class Recorder:
    """A server on all addresses of this machine that keeps what it is shown, and may send others elsewhere."""

    def __init__(self) -> None:
        self.shown: list[str | None] = []
        self.sends_to: str | None = None
        self.port = 0


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            recorder.shown.append(self.headers["Authorization"])
            self.send_response(302 if recorder.sends_to else 200)
            if recorder.sends_to:
                self.send_header("Location", recorder.sends_to)
            self.send_header("Content-Length", "2")
            self.end_headers()
            with suppress(BrokenPipeError):  # who completes does not wait for a busy machine
                self.wfile.write(b"{}")

    with http_server(Handler, "0.0.0.0") as recorder.port:
        yield recorder


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token, which is all that the environment names."""
    for name in ("TASKRUNNER_API_URL", "TASKRUNNER_API_TOKEN", "TASKRUNNER_PUBLIC_URL", "TASKRUNNER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TASKRUNNER_HOME", str(tmp_path))
    (tmp_path / "api-token").write_text(f"{OF_THE_HOME}\n")


def a_command(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKRUNNER_API_URL", url)
    service = find_service(read_settings())
    assert service is not None

    async def ask() -> None:
        async with ApiClient(service) as client:
            with suppress(CliError):
                await client.tasks()

    asyncio.run(ask())


def the_doctor(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKRUNNER_API_URL", url)
    examine(Role.CLIENT)


def the_doctor_beside_a_worker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKRUNNER_PUBLIC_URL", url)
    monkeypatch.setenv("TASKRUNNER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    examine(Role.SERVICES)


def examine(role: Role) -> None:
    setup = find_setup(read_settings())
    assert setup.role is role
    assert setup.service is not None
    check_service(setup.service, start="start it")


def completion(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKRUNNER_API_URL", url)
    command = click.Command("run")
    completing.templates(click.Context(command), click.Option(["--template"]), "")


Ask = Callable[[str, pytest.MonkeyPatch], None]
everybody = pytest.mark.parametrize("ask", [a_command, the_doctor, the_doctor_beside_a_worker, completion])


@everybody
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_a_service_on_this_machine_is_shown_the_token_of_the_home(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, ask: Ask, host: str
) -> None:
    for _ in range(10):  # completion waits for a moment only, which a busy machine may miss
        ask(f"http://{host}:{server.port}", monkeypatch)
        if server.shown:
            break
    assert f"Bearer {OF_THE_HOME}" in server.shown


@everybody
def test_no_other_machine_is_shown_the_token_of_the_home(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """S37: 0.0.0.0 leads here, and is no loopback address."""
    ask(f"http://0.0.0.0:{server.port}", monkeypatch)
    assert set(server.shown) <= {None}


@everybody
def test_what_somebody_on_this_machine_points_at_is_not_shown_the_token(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """S37"""
    with recording() as other:
        server.sends_to = f"http://0.0.0.0:{other.port}/api/templates"
        ask(f"http://127.0.0.1:{server.port}", monkeypatch)
        assert set(other.shown) <= {None}


@everybody
def test_no_proxy_is_shown_what_is_for_this_machine(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """S37"""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    ask("http://127.1.2.3:1", monkeypatch)
    assert server.shown == []


@everybody
def test_the_token_of_the_environment_is_shown_to_whom_it_names(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("TASKRUNNER_API_TOKEN", "tr_for_it")
    for _ in range(10):  # completion waits for a moment only, which a busy machine may miss
        ask(f"http://0.0.0.0:{server.port}", monkeypatch)
        if server.shown:
            break
    assert set(server.shown) == {"Bearer tr_for_it"}
