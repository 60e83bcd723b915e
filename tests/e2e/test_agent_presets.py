"""The preset agents, with programs of their names on the worker's PATH that print how they were called."""

import json
import os
import sys
from pathlib import Path

import pytest

from messages.errors import ErrorType
from messages.statuses import TaskStatus
from messages.templates import INSTALL_COMMANDS, agent_preset
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(90)

HOST = "preset-host"
PROGRAM = (
    f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]))\n"
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name in INSTALL_COMMANDS:
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def worker_env(programs: Path) -> dict[str, str]:
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("preset", ["claude-code", "codex", "gemini", "opencode"])
@pytest.mark.parametrize(
    "prompt", ["--help", '- tidy up\n- "test" it\n', "$(touch broken) `id` 'x' \\ {prompt} é *", "-p"]
)
async def test_a_prompt_reaches_the_presets_program_intact(
    stack: Stack, repository: Path, preset: str, prompt: str
) -> None:
    task = await stack.submit(prompt, agent=preset, backend="worktree", repository=(repository, HOST))
    view = await stack.completed(task)
    assert json.loads(await stack.output(task)) == agent_preset(preset).argv(prompt)
    assert view.result is None  # nothing was run that leaves a file


@pytest.mark.usefixtures("worker")
async def test_a_program_that_is_missing_fails_at_preflight_with_what_mends_it(
    stack: Stack, repository: Path, programs: Path
) -> None:
    (programs / "codex").rename(programs / "gone")
    try:
        task = await stack.submit("x", agent="codex", backend="worktree", repository=(repository, HOST))
        view = await stack.ended(task)
    finally:
        (programs / "gone").rename(programs / "codex")
    assert view.status is TaskStatus.FAILED
    assert view.error is not None
    assert f"'codex' is not on the PATH of host '{HOST}'" in view.error
    assert "npm install -g @openai/codex" in view.error
    assert view.workspace is None
    assert await stack.error_type(task) == ErrorType.BACKEND_UNUSABLE


@pytest.mark.usefixtures("worker")
async def test_a_program_that_setup_did_not_install_fails_the_session_as_clearly(
    stack: Stack, repository: Path
) -> None:
    command = {"kind": "command", "command": ["never-installed", "{prompt}"]}
    template = stack.template(backend="worktree", agent=command, setup=["true"])
    view = await stack.ended(await stack.submit("x", template=template, repository=(repository, HOST)))
    assert view.error is not None
    assert "cannot start 'never-installed'" in view.error
    assert f"host '{HOST}' does not have it: install it" in view.error
