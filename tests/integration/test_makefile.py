"""What ``make`` shows of what it does."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.cli import ROOT

MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")
OLD = 'case "$1" in -m) echo "No module named venv" >&2; exit 1;; *) echo False;; esac'
FITTING = 'case "$1" in -m) echo "$2 with $0"; exit 1;; *) echo True;; esac'


def environment() -> dict[str, str]:
    """Return ours, without what the ``make`` around us tells those below it."""
    return {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}


def setup_with(folder: Path, programs: Mapping[str, str], python: str = "python3") -> subprocess.CompletedProcess[str]:
    """Run ``make setup`` in a copy without anything installed, where ``programs`` are all that is on PATH."""
    copy, path = folder / "copy", folder / "path"
    copy.mkdir()
    path.mkdir()
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, copy)
    for name, script in programs.items():
        (path / name).write_text(f"#!/bin/sh\n{script}\n")
        (path / name).chmod(0o755)
    argv = [str(MAKE), "setup", f"PYTHON={python}"]
    env = {**environment(), "PATH": str(path)}
    return subprocess.run(argv, cwd=copy, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "programs", [{}, {"python3": OLD}, {"python3": OLD, "python3.12": "exit 127"}], ids=["none", "old", "pyenv"]
)
def test_without_a_python_that_fits_it_says_which_is_needed_before_anything_is_installed(
    tmp_path: Path, programs: Mapping[str, str]
) -> None:
    made = setup_with(tmp_path, programs)
    assert made.returncode != 0, made
    first, *others = made.stderr.splitlines()
    assert first.startswith("Python 3.11 to 3.13 is needed, with its venv module"), made
    assert all(line.startswith("make: ***") for line in others), made
    assert not (tmp_path / "copy" / ".tools").exists()


@pytest.mark.parametrize(
    ("programs", "python"),
    [
        ({"python3": OLD, "python3.12": FITTING}, "python3"),
        ({"python3": FITTING}, "python3"),
        ({"python3": FITTING}, "/nowhere/python3.9"),
    ],
    ids=["beside an old one", "python3", "in place of the one named"],
)
def test_a_python_that_fits_is_found_wherever_it_is_on_path(
    tmp_path: Path, programs: Mapping[str, str], python: str
) -> None:
    made = setup_with(tmp_path, programs, python)
    assert f"venv with {tmp_path}/path/{list(programs)[-1]}" in made.stdout, made


def test_run_shows_the_prompt() -> None:
    env = {**environment(), "PROMPT": "echo 'as it is' && $HOME", "TASKRUNNER_API_URL": "http://127.0.0.1:1"}
    argv = ["make", "--old-file=setup", "run"]
    made = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "PROMPT: echo 'as it is' && $HOME" in made.stdout.splitlines(), made
