"""Record the registry of this release: the real program does a few tasks, and its database is dumped.

Run ``python -m tests.releases.record`` once for each release, before its first migration of the next; every later one
has to bring what is recorded to its own schema (``test_upgrade.py``, ``test_upgrade_home.py``).
"""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from cli.home import read_record
from cli.main import VERSION
from messages.statuses import BackendKind
from messages.tasks import TaskInput
from messages.templates import Template
from store.records import Callback
from store.registry import Registry
from tests.support.cli import Cli, private_cli
from tests.support.git_repositories import make_repository
from workers.postgres_programs import find_programs, system_user

TEMPLATES = {"unready": "name: unready\nbackend: local\nsetup: ['echo no compiler here; exit 4']\n"}


async def _add_what_outages_leave(url: str) -> None:
    """Add a task that Temporal never heard of, and a callback that it could not take."""
    async with Registry.connect(url) as registry:
        template = Template(name="local", backend=BackendKind.LOCAL)
        task = TaskInput(task_id="queued", workspace_id="w-queued", prompt="echo later", template=template)
        await registry.tasks.create(task, digest="of the request", idempotency_key="a-key")
        payload = {"workspace_id": "w-queued", "attempt": 1}
        await registry.callbacks.store(Callback("task-queued", "workspace_ready", "w-queued", 1, None, payload))


def _do_tasks(cli: Cli, repository: Path) -> None:
    """Have tasks end in every way."""

    def run(task_id: str, prompt: str, *options: str, code: int) -> None:
        finished = cli.run("run", "--id", task_id, *options, prompt)
        assert finished.code == code, finished

    gate = cli.cwd / "gate"
    os.mkfifo(gate)
    run("changed", "echo working; echo one >> README", "--repo", str(repository), code=0)
    run("bundled", "echo bundling; echo two > new.txt", "--backend", "local", code=0)
    run("unchanged", "printf 'no newline \\303\\251'", "--backend", "local", code=0)
    run("failed", "echo it breaks >&2; exit 3", "--backend", "local", code=1)
    run("unready", "true", "--template", "unready", code=1)
    assert cli.run("submit", "--id", "cancelled", "--backend", "local", f"echo begun; read line < {gate}").code == 0
    follower = cli.start("logs", "-f", "cancelled")
    follower.wait_for("begun", stream="out")
    assert cli.run("cancel", "cancelled").code == 0
    follower.end()


def record(folder: Path) -> None:
    """Write ``registry.sql``, with schema and rows, as plain SQL without psql's own commands."""
    with private_cli(TASKRUNNER_HOST_ID="build-1") as cli:
        templates = cli.cwd / "templates"
        templates.mkdir()
        for name, text in TEMPLATES.items():
            (templates / f"{name}.yaml").write_text(text)
        with cli.dev(env={"TASKRUNNER_TEMPLATES": str(templates)}) as stack:
            _do_tasks(cli, make_repository(cli.cwd / "repository"))
            found = read_record(cli.home)
            assert found
            stack.signal(signal.SIGSTOP)  # else it delivers what is kept
            try:
                asyncio.run(_add_what_outages_leave(found.database_url))
                dump = [find_programs(system_user()) / "pg_dump", "--inserts", "--no-owner", "--no-privileges"]
                done = subprocess.run([*dump, found.database_url], capture_output=True, text=True, check=True)
            finally:
                stack.signal(signal.SIGCONT)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict ", "\\unrestrict "))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "registry.sql").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    record(Path(__file__).parent / VERSION)
