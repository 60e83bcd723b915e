"""Whole tasks on a repository by URL: from the remote to a bundle or a pushed branch, through a worker's death."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages.statuses import TaskStatus
from tests.support.cli import Cli, is_one_line, private_cli
from tests.support.git_remotes import PASSWORD, GitServer, commit, credential_helper, make_remote
from tests.support.git_repositories import files_of, git, make_dirty, snapshot
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(180)

HOST = "url-host"


@pytest.fixture
def cli() -> Iterator[Cli]:
    with private_cli(GIT_CONFIG_GLOBAL="/dev/null") as cli:
        yield cli


@pytest.fixture
def server(tmp_path: Path, repository: Path) -> Iterator[GitServer]:
    commit(repository, "large.bin", os.urandom(3_000_000))
    make_remote(repository, tmp_path / "remotes/app.git")
    with GitServer(tmp_path / "remotes").serving() as server:
        server.password = PASSWORD
        yield server


async def test_a_fetch_goes_on_while_its_worker_is_dead_and_the_task_with_it(
    stack: Stack, server: GitServer, tmp_path: Path
) -> None:
    """S21, S37, S44: one fetch in all, seen while it runs; the result is pushed with the worker's credentials."""
    home, bare = tmp_path / "home", server.root / "app.git"
    server.hold = threading.Event()
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", **credential_helper(PASSWORD)}
    template = stack.template(backend="worktree", push=True)
    async with stack.worker(HOST, home, **env) as worker:
        task = await stack.submit(
            "env; echo made > made-by-agent", template=template, repository={"url": f"{server.url}/app.git"}
        )
        await stack.until(task, lambda view: view.workspace and view.workspace.progress)
        assert server.holding.wait(30)
        seen = await stack.until(task, lambda view: "objects" in ((view.workspace and view.workspace.progress) or ""))
        assert seen.workspace is not None
        assert re.fullmatch(r"fetching 127\.0\.0\.1:\d+/app\.git: \w+ objects( \d+ %)?", seen.workspace.progress or "")
        await worker.kill()
    server.hold.set()
    async with stack.worker(HOST, home, **env):
        view = await stack.ended(task, timeout=60)
    assert view.status is TaskStatus.COMPLETED, view.error
    assert server.fetches == 1
    assert view.workspace is not None
    assert view.workspace.progress is None
    assert view.result is not None
    assert view.result.pushed_to == f"{server.url}/app.git"
    assert files_of(bare, view.result.branch)["made-by-agent"] == "made"
    assert git(bare, "rev-parse", f"{view.result.branch}^") == git(bare, "rev-parse", "main")
    output = await stack.output(task)
    assert "GIT_CONFIG" not in output
    history = await stack.workflow(task).fetch_history()
    assert PASSWORD not in output + history.to_json() + view.model_dump_json()


def test_a_run_on_a_url_needs_no_clone_and_leaves_the_users_alone(cli: Cli, repository: Path) -> None:
    """S44"""
    make_dirty(repository)
    before = snapshot(repository)
    with cli.dev():
        ran = cli.run("run", "--repo", f"file://{repository}", "--ref", "other", "echo new > made")
        assert ran.code == 0, ran
        assert f"on worktree, file://{repository} at other" in ran.err
        told = re.search(r"fetch +(taskrunner diff \S+ --bundle FILE) && (git fetch FILE (\S+):\S+)", ran.err)
        assert told, ran
        assert snapshot(repository) == before
        save, fetch = (command.replace("FILE", "my.bundle").split() for command in told.groups()[:2])
        assert cli.run(*save[1:]).code == 0
        git(cli.cwd, "clone", "--quiet", str(repository), "clone")
        fetch[2] = "../my.bundle"
        subprocess.run(fetch, cwd=cli.cwd / "clone", check=True)
        assert files_of(cli.cwd / "clone", told[3])["made"] == "new"
        shown = cli.json("show", ran.task_id)
        assert shown["repository"]["url"] == f"file://{repository}"

        unknown = cli.run("run", "--repo", f"file://{repository}", "--ref", "othre", "true")
        assert unknown.code == 1
        assert "has no branch or tag 'othre'; it has other" in unknown.err


@pytest.mark.parametrize(
    ("repo", "why"),
    [
        ("https://me:hunter2@example.org/x.git", "credential helper"),
        ("ext::sh -c hunter2", "--repo"),
        ("ssh://-oProxyCommand=hunter2/x", "names no host"),
        ("http://example.org/hunter2", "plain http"),
    ],
)
@pytest.mark.parametrize("command", ["run", "submit"])
def test_what_git_must_not_be_given_is_wrong_usage(cli: Cli, command: str, repo: str, why: str) -> None:
    """S36, S37: before anything is started."""
    refused = cli.run(command, "--repo", repo, "true")
    assert refused.code == 2, refused
    assert is_one_line(refused)
    assert why in refused.err
    assert "hunter2" not in json.dumps(refused.err)
    assert cli.processes() == {}
