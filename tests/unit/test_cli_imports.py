"""What a command loads before it does anything: the agent's first output waits for it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["cli.running", "cli.asking"])
def test_commands_that_talk_to_a_service_do_without_temporals_sdk(module: str) -> None:
    """It takes longer to load than everything else together."""
    program = f"import sys, {module}; sys.exit('temporalio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
