"""What a command loads before it does anything: the agent's first output waits for it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["cli.running", "cli.asking"])
def test_commands_that_talk_to_a_service_do_without_what_loads_slowly(module: str) -> None:
    """Temporal's SDK takes longer to load than everything else together; rich, where it is installed, a fifth of it."""
    program = f"import sys, cli.main, {module}; sys.exit(bool({{'temporalio', 'rich'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
