"""``--backend container`` as a user sees it: the embedded stack, the command, and a real Docker daemon."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from tests.support.cli import Cli, private_cli
from tests.support.docker import IMAGE, UNTIL_TOLD, Daemon, build_image
from tests.support.git_repositories import git, make_repository

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("leaves_no_container")]

BUILTIN = "python:3.13"


@pytest.fixture
def templates() -> Iterator[Path]:
    with TemporaryDirectory(prefix="tr-templates-") as folder:
        yield Path(folder)


@pytest.fixture
def cli(daemon: Daemon, templates: Path) -> Iterator[Cli]:
    daemon.client().tag(IMAGE, *BUILTIN.split(":"))
    docker = {name: value for name, value in daemon.environ.items() if name.startswith("DOCKER_")}
    with private_cli(TASKRUNNER_TEMPLATES=str(templates), **docker) as cli:
        yield cli


def add_template(folder: Path, name: str, image: str, **container: object) -> None:
    content = {"name": name, "backend": "container", "container": {"image": image, **container}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def names(daemon: Daemon) -> list[str]:
    return [entry["Names"][0].removeprefix("/") for entry in daemon.client().containers(all=True)]


def test_a_run_works_in_a_container_and_its_change_comes_back(cli: Cli, tmp_path: Path) -> None:
    """S44: on a machine with nothing but Docker; the image has no git."""
    repository = make_repository(tmp_path / "repository")
    finished = cli.run("run", "--backend", "container", "cat file; echo out; echo new > new.txt", cwd=repository)
    assert finished.code == 0, finished
    assert finished.out.endswith("out\n"), finished
    assert "1 file changed, +1 -0, in a git bundle" in finished.err
    assert re.search(r"waiting for ready", finished.err)
    assert git(repository, "status", "--porcelain") == ""


def test_one_that_ends_too_early_fails_the_task_at_once(cli: Cli, daemon: Daemon, templates: Path) -> None:
    """S14: with its exit code and its log, not at the timeout."""
    ends = json.dumps(["/bin/sh", "-c", "sleep 1; echo no key found >&2; exit 3"])
    add_template(templates, "ends", build_image(daemon, f"ENTRYPOINT {ends}"), workspace_agent="image")
    finished = cli.run("run", "--template", "ends", "--id", "early", "true")
    assert finished.code == 1, finished
    assert "The workspace ended by itself: its container exited with 3." in finished.err
    assert "| no key found" in finished.err
    took = re.search(r"failed in ([0-9.]+)s", finished.err)
    assert took
    assert float(took[1]) < 1 + 5


def test_a_task_outlives_the_kill_of_the_stack(cli: Cli, daemon: Daemon) -> None:
    """S21, S12: kill -9 of the stack; the container reports to the next one, which finds it again."""
    wait = "until [ -e /tmp/go ]; do sleep 0.1; done"
    with cli.dev() as stack:
        assert cli.run("submit", "--backend", "container", "--id", "long", f"echo begun; {wait}; echo ended").code == 0
        follower = cli.start("logs", "-f", "long")
        follower.wait_for("begun", stream="out")
        stack.signal(signal.SIGKILL)
        stack.end()
    before = names(daemon)
    with cli.dev():
        client = daemon.client()
        client.exec_start(client.exec_create(before[0], ["touch", "/tmp/go"])["Id"])
        assert follower.end().out == "begun\nended\n"
        assert cli.json("show", "long")["status"] == "completed"
    assert len(before) == 1


def test_a_run_that_is_interrupted_leaves_no_container(cli: Cli, daemon: Daemon, templates: Path) -> None:
    """S26: while it waits for ready, and while its session runs."""
    image = build_image(daemon, f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', UNTIL_TOLD])}")
    add_template(templates, "never-ready", image, workspace_agent="image")
    for template, stream, text in (("never-ready", "err", "waiting for ready"), ("container", "out", "begun")):
        running = cli.start("run", "--template", template, "echo begun; sleep 600")
        running.wait_for(text, stream=stream)
        running.signal(signal.SIGINT)
        assert running.end().code == 130
        assert names(daemon) == []


def test_an_agent_that_is_not_in_the_image_is_told(cli: Cli) -> None:
    finished = cli.run("run", "--backend", "container", "--agent", "claude-code", "say hello")
    assert finished.code == 1, finished
    assert f"image {BUILTIN} does not have it: install it (npm install -g @anthropic-ai/claude-code)" in finished.err
    assert f"in an image that is built on {BUILTIN}" in finished.err


def test_a_daemon_that_does_not_answer_is_told_at_once(cli: Cli, tmp_path: Path) -> None:
    finished = cli.run("run", "--backend", "container", "true", env={"DOCKER_HOST": f"unix://{tmp_path}/none"})
    assert finished.code == 1, finished
    assert f"Docker does not answer at unix://{tmp_path}/none" in finished.err
    assert "start it, or set DOCKER_HOST to where it is" in finished.err
