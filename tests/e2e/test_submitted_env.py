"""Secret environment values: from ``--env`` to the agent's process, and nowhere else."""

import asyncio
import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from messages.errors import ErrorType
from messages.names import COMPUTE_MARKER
from messages.statuses import TaskStatus
from tests.support.cli import PROGRAM
from tests.support.git_repositories import files_of
from tests.support.stack import Gate, Process, Stack, command_lines

pytestmark = pytest.mark.timeout(90)

HOST = "env-host"
SECRET = "sk-a-secret-that-nobody-may-see"


async def run_cli(stack: Stack, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user of this service."""
    own = {"TASKRUNNER_API_URL": stack.url, "TASKRUNNER_HOST_ID": HOST}
    return await asyncio.to_thread(
        subprocess.run,
        [*PROGRAM, *args],
        env={**stack.env, **own, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def dump(url: str) -> bytes:
    """Return every row of every table, as text and with its bytes as they are."""
    content: list[bytes] = []
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert ("task_env",) in tables
        for (table,) in tables:
            for row in connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))):
                content += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    return b"\n".join(content)


def processes_that_hold(secret: str) -> dict[int, bytes]:
    """Return the environment of every process that has ``secret`` in it."""
    found: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if secret.encode() in environ:
            found[int(entry.name)] = environ
    return found


def files(home: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


async def test_a_submitted_value_reaches_the_agents_process_alone(
    stack: Stack, worker: Process, home: Path, repository: Path, gate: Gate
) -> None:
    """S37: neither history, database, logs, answers, process lists nor files ever hold it."""
    prompt = f'test "$MY_KEY" = "$(printf "sk-a-%s" secret-that-nobody-may-see)" && echo got it; read line < {gate}'
    prompt += "; echo work > file"
    args = ["--env", "MY_KEY", "--repo", str(repository), "--id", (task := f"t-{os.getpid()}-env"), prompt]
    submitted = await run_cli(stack, "submit", *args, MY_KEY=SECRET)
    assert (submitted.returncode, submitted.stdout) == (0, f"{task}\n"), submitted.stderr
    stack.tasks.append(task)
    view = await stack.until(task, lambda view: view.session and view.session.output_bytes)
    assert view.workspace is not None
    assert view.workspace.name is not None

    holders = processes_that_hold(SECRET)
    marker = f"{COMPUTE_MARKER}={view.workspace.name}".encode()
    assert holders
    assert all(marker in environ and b"TASKRUNNER_SESSION=" in environ for environ in holders.values())
    while_it_runs = {
        "commands": "\n".join(command_lines()).encode(),
        "database": dump(stack.env["TASKRUNNER_DATABASE_URL"]),
        "home": files(home),
    }
    again = await run_cli(stack, "submit", *args, MY_KEY=SECRET)
    other = await run_cli(stack, "submit", *args, MY_KEY="another")
    assert (again.returncode, again.stdout, other.returncode) == (0, f"{task}\n", 2)

    gate.open()
    view = await stack.completed(task)
    assert await stack.output(task) == "got it\n"
    assert view.result
    assert "file" in files_of(repository, view.result.branch)
    shown = await run_cli(stack, "show", task)
    assert "MY_KEY" in shown.stdout
    described = (await stack.workflow(task).describe()).raw_description
    seen = {
        **{f"{place}, while it ran": content for place, content in while_it_runs.items()},
        "history": b"".join([event.SerializeToString() async for event in stack.workflow(task).fetch_history_events()]),
        "search attributes and summary": described.SerializeToString(),
        "database": dump(stack.env["TASKRUNNER_DATABASE_URL"]),
        "events": "".join(event.model_dump_json() for event in await stack.events(task)).encode(),
        "answers": f"{(await stack.view(task)).model_dump_json()}{shown.stdout}{again.stderr}{other.stderr}".encode(),
        "logs": (worker.log + stack.api.log + await stack.output(task)).encode(),
        "home": files(home),
    }
    assert b"MY_KEY" in seen["history"]
    assert task.encode() in seen["database"]
    assert [place for place, content in seen.items() if SECRET.encode() in content] == []
    assert await stack.registry.task_env.find(task) is None
    assert processes_that_hold(SECRET) == {}


@pytest.mark.usefixtures("worker")
async def test_a_required_variable_may_be_submitted_and_without_it_the_task_fails_at_once(
    stack: Stack, repository: Path
) -> None:
    """S30: within a second, naming it, and nothing was made."""
    template = stack.template(backend="worktree", required_env=["THEIR_KEY"])
    request = {"template": template, "repository": (repository, HOST)}
    good = await stack.submit('echo "${#THEIR_KEY}"', **request, env={"THEIR_KEY": SECRET})
    await stack.completed(good)
    assert await stack.output(good) == f"{len(SECRET)}\n"

    view = await stack.ended(bad := await stack.submit("true", **request))
    assert view.status is TaskStatus.FAILED
    assert view.error is not None
    assert "THEIR_KEY" in view.error
    assert view.workspace is None
    assert view.finished_at is not None
    assert (view.finished_at - view.created_at).total_seconds() < 1
    assert await stack.error_type(bad) == ErrorType.INVALID_TASK


@pytest.mark.usefixtures("worker")
async def test_a_cancelled_task_leaves_no_value_behind(stack: Stack, repository: Path, gate: Gate) -> None:
    """S26, S37"""
    request = {"backend": "worktree", "repository": (repository, HOST), "env": {"MY_KEY": SECRET}}
    task = await stack.submit(f"echo begun; read line < {gate}", **request)
    await stack.until(task, lambda view: view.session and view.session.output_bytes)
    await stack.cancel(task)
    assert (await stack.ended(task)).status is TaskStatus.CANCELLED
    assert await stack.registry.task_env.find(task) is None
    assert processes_that_hold(SECRET) == {}
