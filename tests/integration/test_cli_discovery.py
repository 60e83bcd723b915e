"""Which service a command talks to, and what it says where nobody knows whether that took its request."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from activities.proc import start_time
from cli import discovery
from cli.client import ApiClient, Disconnected
from cli.discovery import (
    NoTaskYet,
    Service,
    embedded_service,
    find_again,
    find_service,
    named_service,
    service_of_others,
)
from cli.errors import Unreachable
from cli.home import StackRecord
from cli.main import main
from cli.running import placed
from messages.defaults import DEFAULT_API_URL
from messages.settings import Settings
from messages.tasks import Repository, TaskRequest
from tests.support.api import API_TOKEN, RunningApi
from tests.support.cli import dead_stack

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

REQUEST = TaskRequest(id="t-mine", prompt="true", repository=Repository(path="/srv/repo"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home without a stack, and no service named."""
    return Settings(home=tmp_path, api_url=None, api_token=None, host_id="here")


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request with the same bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


async def test_a_stack_that_went_away_is_not_replaced_by_a_stranger_at_the_usual_address(
    api: RunningApi, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our token is not for it, and it does not know our tasks."""
    monkeypatch.setattr(discovery, "DEFAULT_API_URL", api.url)
    with_token = settings.model_copy(update={"api_token": SecretStr("mine")})
    own = dead_stack("here")
    lost = Service(own.api_url, "mine", own)
    with pytest.raises(Unreachable, match=str(settings.home)):
        await asyncio.to_thread(find_again, with_token, lost)
    elsewhere = Service("http://127.0.0.1:1", "mine")
    assert await asyncio.to_thread(find_again, with_token, elsewhere) == elsewhere
    (settings.home / "postgres").mkdir()
    with_services = settings.model_copy(update={"database_url": SecretStr("postgresql://")})
    for records in (settings, with_services):
        assert await asyncio.to_thread(find_service, records) is None  # our own records are asked


def test_where_nobody_can_be_asked_it_is_said_what_begins_the_first_task(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A home without a record is asked nothing, and nothing is started for it: it does not know the id either."""
    monkeypatch.setattr(discovery, "DEFAULT_API_URL", "http://127.0.0.1:1")
    home = settings.home / "none"
    monkeypatch.setenv("TASKRUNNER_HOME", str(home))
    for name in ("TASKRUNNER_API_URL", "TASKRUNNER_API_TOKEN", "TASKRUNNER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    told = f"here is no task in {home} yet; start one with: taskrunner run 'echo hello'\n"
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", f"T{told}")
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr() == ('{"tasks":[],"next_cursor":null}\n', "")
    for command in ("show", "logs", "events", "diff", "cancel"):
        assert main([command, "-f", "t-1"] if command in {"logs", "events"} else [command, "t-1"]) == 1
        assert capsys.readouterr() == ("", f"error: t{told}")
    assert main(["submit", "--backend", "local", "true"]) == 3
    assert "taskrunner dev, or use taskrunner run" in capsys.readouterr().err
    assert main(["templates", "list"]) == 0
    assert "worktree   worktree" in capsys.readouterr().out
    assert main(["templates", "show", "nope"]) == 1
    assert "known: container, local, worktree" in capsys.readouterr().err
    assert not home.exists()
    # Who runs a service here keeps its records elsewhere.
    monkeypatch.setenv("TASKRUNNER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    assert main(["list"]) == 3
    assert f"no service answers for {home}; start one with: taskrunner dev" in capsys.readouterr().err


async def test_the_usual_address_is_used_where_a_service_answers_whose_token_is_known(
    api: RunningApi, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "DEFAULT_API_URL", api.url)
    with_token = settings.model_copy(update={"api_token": SecretStr(API_TOKEN)})
    for find in (find_service, service_of_others):
        service = await asyncio.to_thread(find, with_token)
        assert service == Service(api.url, API_TOKEN)
        async with ApiClient(service) as client:
            assert (await client.tasks()).tasks == []


async def test_a_service_whose_token_is_not_known_is_told_of_and_a_run_starts_its_own(
    api: RunningApi, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home's own token is not shown to it: it opens the home's own stack."""
    monkeypatch.setattr(discovery, "DEFAULT_API_URL", api.url)
    (settings.home / "api-token").write_text("tr_of-this-home\n")
    with pytest.raises(Unreachable, match="TASKRUNNER_API_TOKEN") as told:
        await asyncio.to_thread(find_service, settings)
    assert api.url in str(told.value)
    assert await asyncio.to_thread(service_of_others, settings) is None


async def test_templates_are_read_from_the_files_where_the_service_at_the_usual_address_is_of_others(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whoever writes the first template on a machine where somebody else's service runs."""
    monkeypatch.setattr(discovery, "DEFAULT_API_URL", api.url)
    monkeypatch.setenv("TASKRUNNER_HOME", str(tmp_path / "none"))
    for name in ("TASKRUNNER_API_URL", "TASKRUNNER_API_TOKEN", "TASKRUNNER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert await asyncio.to_thread(main, ["templates", "list"]) == 0
    assert "worktree   worktree" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["templates", "show", "local"]) == 0
    assert "name: local" in capsys.readouterr().out
    # What only that service could know is not made up.
    for command in (["list"], ["show", "t-1"], ["submit", "--backend", "local", "true"]):
        assert await asyncio.to_thread(main, command) == 3
        assert "TASKRUNNER_API_TOKEN is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer", [_http("200 OK", '{"status": "ok"}'), _http("200 OK", "hello"), _http("404 Not Found", "{}"), b"SSH-2.0"]
)
async def test_a_program_that_is_not_ours_is_shown_no_token(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async with answering(answer) as url:
        monkeypatch.setattr(discovery, "DEFAULT_API_URL", url)
        with_token = settings.model_copy(update={"api_token": SecretStr(API_TOKEN)})
        assert await asyncio.to_thread(service_of_others, with_token) is None
        with pytest.raises(NoTaskYet):
            await asyncio.to_thread(find_service, with_token)


def test_only_a_stack_of_the_own_home_is_not_told_the_host(settings: Settings) -> None:
    """A path is of use only on its host; the own stack's may have another name than the one set here."""
    stack = dead_stack("another-name")
    elsewhere = placed(REQUEST, settings, Service("http://127.0.0.1:1", None))
    assert elsewhere.repository == Repository(path="/srv/repo", host="here")
    assert placed(REQUEST, settings, Service("http://127.0.0.1:1", None, stack)) == REQUEST


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n{", _http("502 Bad", "")])
async def test_a_lost_answer_to_a_submission_names_the_id_to_repeat_it_with(answer: bytes) -> None:
    """S20: a second task is not made by somebody who does what the error says."""
    async with answering(answer) as url, ApiClient(Service(url, None)) as client:
        with pytest.raises(Disconnected, match="--id t-mine"):
            await client.submit(REQUEST)


@pytest.mark.parametrize(
    ("url", "stack", "mend"),
    [
        ("http://127.0.0.1:1", None, "correct TASKRUNNER_API_URL, or start the service there"),
        ("http://localhost:1", dead_stack(), "start one with: taskrunner dev"),
        (DEFAULT_API_URL, None, "start one with: taskrunner dev, or correct TASKRUNNER_API_URL"),
    ],
    ids=["named", "the home's", "at the usual address"],
)
async def test_a_dev_is_named_where_it_would_be_used(url: str, stack: StackRecord | None, mend: str) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with ApiClient(Service(url, None, stack), transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(Disconnected) as told:
            await client.tasks()
    assert str(told.value) == f"no service answers at {url} (refused); {mend}; taskrunner doctor says what is missing"


async def test_a_submission_that_cannot_have_arrived_says_nothing_of_ids() -> None:
    async with ApiClient(Service("http://127.0.0.1:1", None)) as client:
        with pytest.raises(Disconnected) as told:
            await client.submit(REQUEST)
    assert "--id" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "token"),
    [("http://127.0.0.1:8070", "tr_of_the_home"), ("http://tasks.example.org", None)],
    ids=["on this machine", "elsewhere"],
)
def test_the_homes_token_is_told_to_no_other_machine(tmp_path: Path, url: str, token: str | None) -> None:
    """S37"""
    (tmp_path / "api-token").write_text("tr_of_the_home\n")
    service = named_service(Settings(home=tmp_path, api_url=url))
    assert service is not None
    assert service.token == token


async def test_a_token_that_is_refused_is_named_and_where_a_right_one_is(
    api: RunningApi, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it was that was shown; the token itself is not told (S37)."""
    monkeypatch.setenv("TASKRUNNER_API_TOKEN", "of the environment, which the settings were not made of")

    async def refusal(service: Service | None) -> str:
        assert service is not None
        async with ApiClient(service) as client:
            with pytest.raises(Unreachable) as told:
                await client.tasks()
        assert "hunter2" not in str(told.value)
        return str(told.value)

    set_it = "set TASKRUNNER_API_TOKEN to a token of that service"
    there = "that of taskrunner dev, or of an api that was given none, is in the file api-token of its TASKRUNNER_HOME"
    named = settings.model_copy(update={"api_url": api.url})
    given = named.model_copy(update={"api_token": SecretStr("tr_hunter2")})
    unset = "TASKRUNNER_API_TOKEN is not set"
    assert await refusal(named_service(named)) == f"{api.url} wants a token, and {unset}; {set_it} ({there})"
    wrong = "does not accept TASKRUNNER_API_TOKEN"
    assert await refusal(named_service(given)) == f"{api.url} {wrong}; correct it ({there})"
    file = settings.home / "api-token"
    file.write_text("tr_hunter2\n")
    assert await refusal(named_service(named)) == f"{api.url} does not accept the token in {file}; {set_it} ({there})"
    own = dead_stack("here").model_copy(
        update={"api_url": api.url, "pid": os.getpid(), "started": start_time(os.getpid())}
    )
    (settings.home / "stack.json").write_text(own.model_dump_json())
    own_stack = await asyncio.to_thread(embedded_service, given)
    assert await refusal(own_stack) == f"{api.url} {wrong}; unset it: the stack of this home takes the home's own token"
    for header in ({}, {"Authorization": "Bearer tr_hunter2"}):
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{api.url}/api/tasks", headers=header)
        assert there in answer.json()["detail"]
