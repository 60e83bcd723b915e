"""An agent's program is looked for where the agent will look for it."""

from pathlib import Path
from typing import Any

import pytest

from activities.errors import BackendUnusable
from activities.programs import require_program
from messages.statuses import BackendKind
from messages.tasks import TaskInput
from tests.support.hosts import make_task


def program(folder: Path, name: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def task_of(*command: str, names: tuple[str, ...] = (), **template: Any) -> TaskInput:
    task = make_task(BackendKind.LOCAL, agent={"kind": "command", "command": [*command, "{prompt}"]}, **template)
    return task.model_copy(update={"env_names": names})


def check(task: TaskInput, path: Path | str | None) -> None:
    require_program(task, {} if path is None else {"PATH": str(path)}, "build-1")


def test_a_program_on_the_path_is_found_and_one_that_is_not_there_is_named_with_its_host(tmp_path: Path) -> None:
    program(tmp_path / "bin", "my-agent")
    check(task_of("my-agent"), tmp_path / "bin")
    with pytest.raises(BackendUnusable, match=r"'my-agent' is not on the PATH of host 'build-1'; install it"):
        check(task_of("my-agent"), tmp_path)


def test_the_program_of_a_preset_comes_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(BackendUnusable, match=r"npm install -g @anthropic-ai/claude-code"):
        check(make_task(BackendKind.LOCAL, agent="claude-code"), tmp_path)


def test_what_cannot_be_executed_is_no_program(tmp_path: Path) -> None:
    path = program(tmp_path / "bin", "my-agent", mode=0o644)
    for name in ("my-agent", str(path), str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(BackendUnusable, match="host 'build-1'"):
            check(task_of(name), tmp_path / "bin")
    path.chmod(0o755)
    check(task_of(str(path)), None)


def test_the_templates_own_path_counts(tmp_path: Path) -> None:
    program(tmp_path / "bin", "my-agent")
    check(task_of("my-agent", env={"PATH": str(tmp_path / "bin")}), tmp_path)
    with pytest.raises(BackendUnusable):
        check(task_of("my-agent", env={"PATH": str(tmp_path / "bin")}, required_env=("PATH",)), tmp_path)


@pytest.mark.parametrize(
    "task",
    [
        task_of("tools/agent"),
        task_of("./agent"),
        task_of("my-agent", setup=("make agent",)),
        task_of("my-agent", names=("PATH",)),
        task_of("my-agent", env={"PATH": "node_modules/.bin:/nowhere"}),
        task_of("my-agent", env={"PATH": "/nowhere:"}),
    ],
)
def test_what_cannot_be_known_before_the_checkout_is_not_judged(task: TaskInput, tmp_path: Path) -> None:
    check(task, tmp_path)


def test_without_a_path_the_systems_default_counts() -> None:
    check(task_of("sh"), None)
