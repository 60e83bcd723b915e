"""What a command loads before it does anything: the agent's first output waits for it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import httpx
import pydantic
import pytest

SLOW = {"temporalio", "rich"}
"""Temporal's SDK takes longer to load than everything else together; rich, where it is installed, a fifth of it."""
LATER = {"asyncio", "httpx", "messages.views", "cli.render"}
"""What follows a task, and shows it: loaded while the service works on it."""


@pytest.mark.parametrize(("module", "unwanted"), [("cli.running", SLOW | LATER), ("cli.api_commands", SLOW)])
def test_a_command_sends_its_request_before_it_loads_what_is_not_needed_for_that(
    module: str, unwanted: set[str]
) -> None:
    program = f"import sys, cli.main, cli.commands.run, {module}; print(*({unwanted} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("package", [click, httpx, pydantic])
def test_what_is_installed_is_compiled(package: ModuleType) -> None:
    """Where Python may not write its bytecode, as with PYTHONDONTWRITEBYTECODE, each start would compile all anew."""
    assert package.__file__
    assert Path(importlib.util.cache_from_source(package.__file__)).exists(), "install it with: make setup"
