"""What the doctor says of each thing in each state that it can be in, and that it never waits for one."""

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.testing import WorkflowEnvironment

from cli.discovery import Service
from cli.doctor import postgres as databases
from cli.doctor import programs
from cli.doctor import temporal as temporals
from cli.doctor.check import Check, Status, ok
from cli.doctor.containers import ContainerLook
from cli.doctor.examination import Role, find_setup, plan, read_what_can_be, run_all
from cli.doctor.ports import check_ports
from cli.doctor.programs import Programs
from cli.doctor.service import check_service
from store.schema import MIGRATIONS
from tests.support.api import API_TOKEN, RunningApi
from tests.support.doctor import is_told, program
from tests.support.temporal import dev_server_path
from workers.postgres import start_postgres

pytest_plugins = ["tests.support.temporal", "tests.support.api", "tests.support.doctor"]


# Programs


def test_python_has_to_be_new_enough() -> None:
    is_told(programs.check_python(), Status.OK)
    is_told(programs.check_python((3, 10, 9)), Status.BROKEN, "3.10.9", "3.11")


def test_git_has_to_be_there_and_new_enough(asked: Programs, tools: Path) -> None:
    is_told(programs.check_git(asked), Status.BROKEN, "not on PATH", "2.34", "install git")
    git = program(tools / "git", "echo git version 2.33.8")
    is_told(programs.check_git(asked), Status.BROKEN, "2.33.8", "older than git 2.34")
    program(git, "echo git version 2.34.0.rc1")
    is_told(programs.check_git(asked), Status.OK, "2.34.0", str(git))
    for script in ("exit 1", "echo hello 9.9"):
        program(git, script)
        is_told(programs.check_git(asked), Status.BROKEN, str(git))
    git.write_bytes(b"\x7fELF nothing")
    is_told(programs.check_git(asked), Status.BROKEN, str(git))


def test_a_program_that_does_not_end_is_ended_with_all_that_it_started(asked: Programs, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    os.mkfifo(note)
    slow = program(tmp_path / "slow", f"sleep 1000 & echo $! $$ > {note}; wait")
    pids: list[int] = []
    reader = threading.Thread(target=lambda: pids.extend(map(int, note.read_text().split())))
    reader.start()
    with pytest.raises(TimeoutError):
        asked.ask(str(slow), share=0.5)
    reader.join(10)
    assert len(pids) == 2
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_program_that_never_stops_talking_costs_little(asked: Programs, tmp_path: Path) -> None:
    said = asked.ask(str(program(tmp_path / "loud", "exec yes 1.2.3")))
    assert len(said.text) < 1_000_000
    assert said.code < 0
    background = program(tmp_path / "server", "sleep 1000 & echo 1.2.3")
    assert asked.ask(str(background)).text == "1.2.3\n"  # whoever holds the pipe


def test_agents_are_never_needed(asked: Programs, tools: Path) -> None:
    is_told(programs.check_agent(asked, "codex"), Status.NOT_NEEDED, "npm install -g @openai/codex")
    program(tools / "codex", "echo codex-cli 0.142.0")
    is_told(programs.check_agent(asked, "codex"), Status.OK, "0.142.0", str(tools))
    program(tools / "codex", "exit 3")
    is_told(programs.check_agent(asked, "codex"), Status.OK, "not known", str(tools))


# Temporal


@pytest.fixture
def temporal_cli() -> Path:
    return Path(dev_server_path())


def test_a_temporal_binary_is_found_or_the_way_to_one_is_told(
    asked: Programs, temporal_cli: Path, tools: Path, nobody: int
) -> None:
    away = f"http://127.0.0.1:{nobody}"

    def check(named: Path | None = None, downloads: str = away) -> Check:
        return temporals.check_cli(asked, named, downloads=downloads)

    is_told(check(), Status.BROKEN, away, "no Go", "https://docs.temporal.io/cli")
    program(tools / "go", "echo go version go1.26.1 linux/amd64")
    is_told(check(), Status.WARNING, "1.26.1", "go install github.com/temporalio/cli")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        is_told(check(downloads=f"http://127.0.0.1:{server.getsockname()[1]}"), Status.WARNING, "downloads it")
    is_told(check(tools / "none"), Status.BROKEN, "TASKRUNNER_TEMPORAL_BIN")
    is_told(check(program(tools / "other", "echo hello")), Status.BROKEN, "not the Temporal CLI", "unset")
    program(tools / "temporal", "exit 1")
    is_told(check(), Status.BROKEN, "not the Temporal CLI", str(tools / "temporal"))
    is_told(check(temporal_cli), Status.OK, str(temporal_cli))


def test_a_temporal_that_is_away_or_mute_is_told(nobody: int, mute: int) -> None:
    away = temporals.check_server(f"127.0.0.1:{nobody}")
    is_told(away, Status.BROKEN, str(nobody))
    assert away.mend == "start it, or set TEMPORAL_ADDRESS"
    began = time.monotonic()
    is_told(temporals.check_server(f"127.0.0.1:{mute}", seconds=0.5), Status.BROKEN, str(mute), "0.5 s")
    assert time.monotonic() - began < 3


@contextmanager
def requests_counted() -> Iterator[Counter[str]]:
    """Count what is asked of Temporal by the clients that are made meanwhile, as the SDK's own metrics do."""
    metrics, usual, requests = MetricBuffer(1000), Runtime.default(), Counter[str]()
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(metrics=metrics)), error_if_already_set=False)
    try:
        yield requests
        for update in metrics.retrieve_updates():
            if update.metric.name == "temporal_request":
                requests[str(update.attributes["operation"])] += int(update.value)
    finally:
        Runtime.set_default(usual, error_if_already_set=False)


async def test_a_namespace_and_its_search_attributes_have_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found wrong, mended by the very command that it names, found right."""
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=dev_server_path(), dev_server_log_level="error"
    ) as bare:
        target = bare.client.service_client.config.target_host
        monkeypatch.setenv("TEMPORAL_ADDRESS", target)
        monkeypatch.setenv("TASKRUNNER_TEMPORAL_BIN", dev_server_path())
        check = await asyncio.to_thread(temporals.check_server)
        is_told(check, Status.BROKEN, target, "TaskStatus, TaskStep, WorkspaceBackend, WorkspaceId")
        assert check.mend
        await asyncio.to_thread(subprocess.run, check.mend, check=True, capture_output=True)
        is_told(await asyncio.to_thread(temporals.check_server), Status.OK, target, "namespace default")
        with requests_counted() as requests:
            is_told(await asyncio.to_thread(temporals.check_server), Status.OK, "search attributes registered")
        assert requests == {"GetSystemInfo": 1, "DescribeNamespace": 1, "ListSearchAttributes": 1}
        monkeypatch.setenv("TEMPORAL_NAMESPACE", "nowhere")
        check = await asyncio.to_thread(temporals.check_server)
        is_told(check, Status.BROKEN, "no namespace 'nowhere'", "namespace create --namespace nowhere")


# PostgreSQL


def test_the_database_has_to_be_there_with_this_releases_schema(database_url: str) -> None:
    is_told(databases.check_database(database_url), Status.OK, "schema up to date")
    last = sorted(MIGRATIONS.glob("[0-9]*.sql"))[-1].stem
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE name = %s", (last,))
        is_told(databases.check_database(database_url), Status.BROKEN, last, "taskrunner migrate")
        connection.execute("INSERT INTO schema_migrations (name) VALUES (%s), ('9999_later')", (last,))
        is_told(databases.check_database(database_url), Status.BROKEN, "9999_later", "newer release")
        connection.execute("DROP TABLE schema_migrations")
        is_told(databases.check_database(database_url), Status.BROKEN, "taskrunner migrate")
        assert connection.execute("SELECT to_regclass('schema_migrations')").fetchone() == (None,)


def test_a_database_that_cannot_be_reached_is_told_without_its_password(database_url: str, nobody: int) -> None:
    """S37."""
    url = f"postgresql://me:hunter2@127.0.0.1:{nobody}/x"
    checks = [databases.check_database(url)]
    is_told(checks[0], Status.BROKEN, str(nobody), "TASKRUNNER_DATABASE_URL")
    checks.append(databases.check_database("postgresql://me:hunter2@host:port/x"))
    is_told(checks[1], Status.BROKEN, "TASKRUNNER_DATABASE_URL", "port")
    checks.append(databases.check_database(database_url.replace("/t", "/no_t", 1)))
    is_told(checks[2], Status.BROKEN, "does not exist", "createdb no_t")
    assert "hunter" not in repr(checks)


def test_a_mute_database_is_not_waited_for(mute: int) -> None:
    began = time.monotonic()
    is_told(databases.check_database(f"postgresql://127.0.0.1:{mute}/x"), Status.BROKEN, str(mute))
    assert time.monotonic() - began < 3.4


async def test_a_password_that_is_wrong_is_told() -> None:
    with TemporaryDirectory(prefix="tr-home-") as folder:
        (Path(folder) / "logs").mkdir()
        server = await start_postgres(Path(folder))
        try:
            async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
                await connection.execute("CREATE ROLE me LOGIN PASSWORD 'right'")
                (Path(folder) / "postgres" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
                await connection.execute("SELECT pg_reload_conf()")
            for wrong in ("me:hunter2@", "me@"):
                url = server.url.replace("postgres@", wrong)
                check = await asyncio.to_thread(databases.check_database, url)
                is_told(check, Status.BROKEN, "password", "correct the user and the password")
                assert "hunter" not in repr(check)
        finally:
            await server.child.stop()


def test_the_embedded_postgresql_can_run_and_its_folder_is_one(asked: Programs, tmp_path: Path) -> None:
    is_told(databases.check_embedded(asked, tmp_path, None), Status.OK, "embedded, 18")
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "something").touch()
    is_told(databases.check_embedded(asked, tmp_path, None), Status.BROKEN, "not a PostgreSQL database", "move it")
    (data / "PG_VERSION").write_text("9\n")
    is_told(databases.check_embedded(asked, tmp_path, None), Status.BROKEN, "'9'", "move the folder away")


# Ports, the service


def test_who_has_a_port_is_told(tmp_path: Path, mute: int, nobody: int) -> None:
    usual = {"api": (mute, "--port"), "ui": (nobody, "--ui-port")}
    api, ui = check_ports(tmp_path, None, usual)
    is_told(api, Status.WARNING, str(mute), f"process {os.getpid()}", "taskrunner dev --port 0")
    is_told(ui, Status.OK, str(nobody), "free")
    taken = check_ports(tmp_path, None, usual | {"temporal": (mute, "--temporal-port")})
    assert {check.mend for check in taken} == {None, "taskrunner dev --port 0 --temporal-port 0"}


def test_a_service_has_to_answer_and_to_take_our_token(mute: int, nobody: int) -> None:
    """S37"""
    checks = [
        check_service(Service(f"http://me:hunter2@127.0.0.1:{port}", "tr_hunter3"), start="start it", seconds=0.5)
        for port in (nobody, mute)
    ]
    for check, port in zip(checks, (nobody, mute), strict=True):
        is_told(check, Status.BROKEN, f"http://127.0.0.1:{port}", "start it")
    assert "hunter" not in repr(checks)


async def test_a_service_that_answers_is_asked_for_its_parts(api: RunningApi) -> None:
    async def check(token: str | None) -> Check:
        return await asyncio.to_thread(check_service, Service(api.url, token), start="start it")

    is_told(await check(API_TOKEN), Status.OK, api.url)
    is_told(await check("wrong"), Status.BROKEN, "does not accept TASKRUNNER_API_TOKEN", "the file api-token")
    is_told(await check(None), Status.BROKEN, "wants a token", "set TASKRUNNER_API_TOKEN", "the file api-token")


# Altogether


def test_a_check_that_raises_or_hangs_hides_no_other() -> None:
    def fails() -> Check:
        raise ValueError("of http://me:hunter2@host/x")

    def hangs() -> Check:
        threading.Event().wait()
        raise AssertionError

    began = time.monotonic()
    made = [("a", lambda: ok("a", "x")), ("b", fails), ("agent-c", hangs), ("d", hangs), ("e", lambda: [ok("e", "y")])]
    a, b, c, d, e = run_all(made, seconds=0.5)
    assert time.monotonic() - began < 2
    assert (a.status, e.status) == (Status.OK, Status.OK)
    is_told(b, Status.BROKEN, "ValueError", "http://host/x")
    assert c.status is Status.NOT_NEEDED
    is_told(d, Status.BROKEN, "0.5 s")


def test_what_is_needed_depends_on_the_setup(
    asked: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nobody: int
) -> None:
    for name in list(os.environ):
        if name.startswith(("TASKRUNNER_", "TEMPORAL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TASKRUNNER_HOME", str(tmp_path))

    def needed() -> tuple[Role, set[str]]:
        settings, wrong = read_what_can_be()
        assert wrong == []
        setup = find_setup(settings)
        with closing(ContainerLook(1.0)) as look:
            checks = run_all(plan(setup, asked, look, docker=False), seconds=20)
        return setup.role, {check.name for check in checks if check.status is not Status.NOT_NEEDED}

    always = {"python", "git", "agent-shell"}
    role, names = needed()
    assert role is Role.EMBEDDED
    assert always | {"temporal-cli", "postgresql", "home", "keys", "port-ui", "stack"} <= names
    assert not {"api", "temporal-server"} & names
    monkeypatch.setenv("TASKRUNNER_API_URL", f"http://127.0.0.1:{nobody}")
    role, names = needed()
    assert role is Role.CLIENT
    assert always | {"api"} == {name for name in names if name not in {"docker"} and name[6:] not in programs.AGENTS}
    monkeypatch.setenv("TASKRUNNER_DATABASE_URL", f"postgresql://127.0.0.1:{nobody}/x")
    role, names = needed()
    assert role is Role.SERVICES
    assert always | {"api", "postgresql", "temporal-server", "keys", "home", "disk", "templates"} <= names
    assert not {"temporal-cli", "ports", "stack"} & names


def test_a_variable_that_cannot_be_used_hides_no_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TASKRUNNER_HOME", str(tmp_path))
    monkeypatch.setenv("TASKRUNNER_API_URL", "nonsense")
    monkeypatch.setenv("TASKRUNNER_PUBLIC_URL", "http://me:hunter2@127.0.0.1:1")
    monkeypatch.setenv("TASKRUNNER_HOST_ID", "€")
    monkeypatch.setenv("TASKRUNNER_API_TOKEN", "hunter 2")
    settings, wrong = read_what_can_be()
    assert {check.found for check in wrong} == {
        f"TASKRUNNER_{x}" for x in ("API_URL", "PUBLIC_URL", "HOST_ID", "API_TOKEN")
    }
    for check in wrong:
        is_told(check, Status.BROKEN, "correct TASKRUNNER_")
    assert "hunter" not in repr(wrong)
    assert settings.home == tmp_path
