"""The stack in the foreground, its survival, and the same parts as processes of their own."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.cli import Cli, is_one_line
from tests.support.cuttable_proxy import cuttable_proxy
from tests.support.stack import Gate
from tests.support.temporal import stack_temporal
from workers.postgres import start_postgres

pytestmark = pytest.mark.timeout(240)


def servers_of(cli: Cli) -> dict[str, int]:
    return {
        name: pid
        for pid, command in cli.processes().items()
        for name, word in (("temporal", "start-dev"), ("postgres", "bin/postgres -D"))
        if word in command
    }


def test_the_commands_show_a_task_in_text_and_json(cli: Cli) -> None:
    """S39, S49: what is known is shown, at any time, to people and to programs."""
    with cli.dev():
        assert cli.run("list").err == "No tasks.\n"
        finished = cli.run("run", "--id", "shown", "echo hello; exit 3")
        assert finished.code == 1, finished
        listed = cli.run("list").out.splitlines()
        assert listed[0].split()[:3] == ["ID", "STATUS", "STEP"]
        assert listed[1].split()[:4] == ["shown", "failed", "-", "local"]
        shown = cli.run("show", "shown").out
        for word in ("task", "shown", "failed", "STEP AT", "session running", "exit code", "3", "removed"):
            assert word in shown
        events = cli.run("events", "shown").out
        assert "running → failed" in events
        assert cli.run("logs", "shown").out == "hello\n"
        boot = cli.run("logs", "--boot", "-f", "shown").out
        assert "attempt 1 listening completed: the workspace agent takes sessions\n" in boot
        assert cli.run("diff", "shown").code == 1

        assert [task["id"] for task in cli.json("list")["tasks"]] == ["shown"]
        assert cli.json("list", "--status", "completed")["tasks"] == []
        assert cli.json("show", "shown")["session"]["exit_code"] == 3
        lines = cli.run("events", "--json", "shown").out.splitlines()
        assert json.loads(lines[-1])["current"] == "failed"
        assert json.loads(cli.run("logs", "--json", "shown").out) == {"offset": 0, "text": "hello\n"}
        entries = [json.loads(line) for line in cli.run("logs", "--boot", "--json", "shown").out.splitlines()]
        assert ("listening", "completed") in [(entry["step"], entry["status"]) for entry in entries]
        assert cli.json("submit", "--id", "other", "true")["id"] == "other"
        templates = cli.json("templates", "list")
        assert [template["name"] for template in templates["templates"]] == ["container", "local", "worktree"]
        assert cli.json("templates", "show", "local")["provision_timeout_seconds"] == 600
        assert "provision timeout: 600 s" in cli.run("templates", "show", "local").out


def test_a_task_outlives_the_kill_of_the_stack_and_ends_on_the_next(cli: Cli, gate: Gate) -> None:
    """S21: kill -9 of everything but the workspace; the next stack finds it again, and one session was made."""
    with cli.dev() as stack:
        assert cli.run("submit", "--id", "long", f"echo begun; read line < {gate}; echo $line").code == 0
        follower = cli.start("logs", "-f", "long")
        follower.wait_for("begun", stream="out")
        stack.signal(signal.SIGKILL)
        stack.end()
        follower.wait_for(f"No service answers for {cli.home}; waiting for it, two minutes at most", stream="err")
    servers = servers_of(cli)
    with cli.dev():
        assert not set(servers.values()) & set(servers_of(cli).values())
        gate.open("ended")
        # It was there before the kill, and found the new stack by itself.
        followed = follower.end()
        assert (followed.out, followed.err.count("\n")) == ("begun\nended\n", 1), followed
        assert cli.json("show", "long")["status"] == "completed"
    assert cli.processes() == {}


def test_servers_that_die_are_started_again(cli: Cli, gate: Gate) -> None:
    """S47: a task that runs meanwhile does not notice."""
    with cli.dev():
        running = cli.start("run", f"echo begun; read line < {gate}; echo $line")
        running.wait_for("begun", stream="out")
        before = servers_of(cli)
        assert set(before) == {"temporal", "postgres"}
        log = cli.home / "logs" / "stack.log"
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        gate.open("ended")
        finished = running.end()
        assert (finished.code, finished.out) == (0, "begun\nended\n"), finished
        after = servers_of(cli)
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        assert log.read_text().count("was started again") == 2
    assert cli.processes() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_stack_and_everything_that_it_started(cli: Cli, number: signal.Signals) -> None:
    with cli.dev() as stack:
        stack.signal(number)
        finished = stack.end()
    assert finished.code == 0, finished
    assert "Traceback" not in finished.err
    assert cli.processes() == {}


def test_dev_tells_people_where_it_listens_and_where_the_token_is(cli: Cli) -> None:
    with cli.dev() as stack:
        url = stack.wait_for(r"API +(http://\S+)", stream="out")[1]
        token = Path(stack.wait_for(r"API token +in (\S+)", stream="out")[1]).read_text().strip()
        answer = httpx.get(f"{url}/api/tasks", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
        assert answer.status_code == 200, answer


def test_dev_tells_programs_where_it_listens(cli: Cli) -> None:
    stack = cli.start("dev", "--json", "--port", "0", "--temporal-port", "0", "--ui-port", "0")
    record = json.loads(stack.wait_for(r"\{.*\}", stream="out")[0])
    assert record == json.loads((cli.home / "stack.json").read_text())
    assert cli.run("list", env={"TASKRUNNER_API_URL": record["api_url"]}).code == 0
    stack.signal(signal.SIGTERM)
    assert stack.end().code == 0


def test_a_token_of_the_environment_is_good_for_as_long_as_it_is_set(cli: Cli) -> None:
    """S37: what was taken out of the environment opens nothing any more."""
    mine = {"TASKRUNNER_API_TOKEN": "tr-of-my-own-choice"}
    with cli.dev(env=mine):
        assert cli.run("list", env=mine).code == 0
        assert cli.run("list").code == 0
    with cli.dev():
        finished = cli.run("list", env=mine)
        assert finished.code == 3, finished
        assert "does not accept TASKRUNNER_API_TOKEN; unset it" in finished.err
        assert cli.run("list").code == 0


@pytest.mark.parametrize("variable", ["TASKRUNNER_PUBLIC_URL", "TASKRUNNER_API_URL"])
def test_the_api_answers_to_the_name_that_workspaces_were_given(cli: Cli, database_url: str, variable: str) -> None:
    """Behind a proxy on the same machine every callback carries that name, and a 421 would be final to its sender."""
    env = {variable: "https://Tasks.example.org:8443/below", "TASKRUNNER_DATABASE_URL": database_url}
    api = cli.start("api", "--port", "0", env=env | {"TEMPORAL_ADDRESS": "127.0.0.1:1"})
    url = api.wait_for(r"answers at (http://\S+)", stream="err")[1]
    for host, status in (
        ("tasks.example.org", 401),
        ("tasks.example.org:8443", 401),
        ("evil.example.org", 421),
        ("example.org", 421),
    ):
        answer = httpx.post(f"{url}/api/workspaces/w-1/ready", headers={"Host": host}, trust_env=False)
        assert (host, answer.status_code) == (host, status)
    assert "TASKRUNNER_PUBLIC_URL" in answer.json()["detail"]
    api.signal(signal.SIGTERM)
    assert api.end().code == 0


@pytest.fixture
async def servers(cli: Cli) -> AsyncIterator[dict[str, str]]:
    """Temporal and PostgreSQL that belong to nobody's stack, as environment variables."""
    home = cli.cwd / "servers"
    (home / "logs").mkdir(parents=True)
    async with AsyncExitStack() as stack:
        postgres = await start_postgres(home)
        stack.push_async_callback(postgres.child.stop)
        temporal = await stack.enter_async_context(stack_temporal(home))
        yield {"TEMPORAL_ADDRESS": temporal.address, "TASKRUNNER_DATABASE_URL": postgres.url}


async def test_api_and_worker_as_processes_of_their_own(cli: Cli, servers: dict[str, str]) -> None:
    """The parts of the stack, started one by one against servers that are there already."""
    cli.env |= servers
    applied = cli.json("migrate")["applied"]
    assert applied
    assert cli.run("migrate").out == "Nothing to do: the database is up to date.\n"
    api = cli.start("api", "--port", "0", "--ui-url", "http://ui.example")
    url = api.wait_for(r"answers at (http://\S+)", stream="err")[1]
    cli.env |= {"TASKRUNNER_API_URL": url}
    missing = cli.run("worker", env={"TEMPORAL_NAMESPACE": "elsewhere"})
    assert missing.code == 3, missing
    assert "no namespace 'elsewhere'; make it: temporal operator namespace create" in missing.err
    assert "internal error" not in missing.err
    worker = cli.start("worker")
    worker.wait_for("is ready", stream="err")
    finished = cli.run("run", "echo apart")
    assert (finished.code, finished.out) == (0, "apart\n"), finished
    assert "http://ui.example/namespaces/default/workflows/" in finished.err
    for process in (worker, api):
        process.signal(signal.SIGTERM)
        ended = process.end()
        assert ended.code == 0, ended
        assert "Traceback" not in ended.err


async def test_an_api_that_starts_while_postgresql_is_away_serves_and_takes_its_token_later(
    cli: Cli, database_url: str
) -> None:
    """S47: a replica that is started anew during an outage passes callbacks on like all others."""
    async with cuttable_proxy(database_url) as proxy, httpx.AsyncClient(trust_env=False) as http:
        await proxy.cut()
        mine = {"Authorization": "Bearer tr-of-my-own-choice"}
        env = {"TASKRUNNER_DATABASE_URL": proxy.url, "TEMPORAL_ADDRESS": "127.0.0.1:1"}
        api = cli.start("api", "--port", "0", env=env | {"TASKRUNNER_API_TOKEN": "tr-of-my-own-choice"})
        said = await asyncio.to_thread(api.wait_for, r"answers at (http://\S+)", stream="err")
        assert (await http.post(f"{said[1]}/api/workspaces/w-1/ready")).status_code == 401
        assert (await http.get(f"{said[1]}/api/tasks", headers=mine, timeout=20)).status_code == 503
        await asyncio.to_thread(api.wait_for, "the API token is not accepted yet", stream="err")
        await proxy.open()
        async with asyncio.timeout(20):
            while (answer := await http.get(f"{said[1]}/api/tasks", headers=mine)).status_code != 200:
                assert answer.status_code in {401, 503}, answer
        api.signal(signal.SIGTERM)
        ended = await asyncio.to_thread(api.end)
        assert ended.code == 0, ended
        assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["worker", "migrate"])
def test_servers_that_are_away_are_told(cli: Cli, command: str) -> None:
    env = {"TEMPORAL_ADDRESS": "127.0.0.1:1", "TASKRUNNER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    finished = cli.run(command, env=env)
    assert finished.code == 3, finished
    assert finished.err.strip().splitlines()[-1].startswith("error: "), finished
    assert "127.0.0.1" in finished.err
    assert "Traceback" not in finished.err


async def test_a_postgresql_that_is_away_is_told_with_the_next_step_and_once(cli: Cli, servers: dict[str, str]) -> None:
    """However often the pool tries until it is given up."""
    env = servers | {"TASKRUNNER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    next_step = "Connection refused; check TASKRUNNER_DATABASE_URL, and whether PostgreSQL runs there"
    migrate = await asyncio.to_thread(cli.run, "migrate", env=env)
    assert is_one_line(migrate), migrate
    assert next_step in migrate.err
    worker = cli.start("worker", env=env)
    await asyncio.to_thread(worker.wait_for, "heartbeats cannot be read", stream="err")  # it waits for PostgreSQL
    worker.signal(signal.SIGTERM)
    ended = await asyncio.to_thread(worker.end)
    assert ended.err.count("psycopg.pool") == 1, ended
    assert next_step in ended.err
