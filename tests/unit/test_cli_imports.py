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


@pytest.mark.parametrize("module", ["cli.running", "cli.api_commands"])
def test_commands_that_talk_to_a_service_do_without_what_loads_slowly(module: str) -> None:
    """Temporal's SDK takes longer to load than everything else together; rich, where it is installed, a fifth of it."""
    program = f"import sys, cli.main, {module}; sys.exit(bool({{'temporalio', 'rich'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("package", [click, httpx, pydantic])
def test_what_is_installed_is_compiled(package: ModuleType) -> None:
    """Where Python may not write its bytecode, as with PYTHONDONTWRITEBYTECODE, each start would compile all anew."""
    assert package.__file__
    assert Path(importlib.util.cache_from_source(package.__file__)).exists(), "install it with: make setup"
