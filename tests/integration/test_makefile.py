"""What ``make`` shows of what it does."""

import os
import shutil
import subprocess

import pytest

from tests.support.cli import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_run_shows_the_prompt() -> None:
    env = {**os.environ, "PROMPT": "echo 'as it is' && $HOME", "TASKRUNNER_API_URL": "http://127.0.0.1:1"}
    argv = ["make", "--old-file=setup", "run"]
    made = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "PROMPT: echo 'as it is' && $HOME" in made.stdout.splitlines(), made
