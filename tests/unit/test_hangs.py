"""What hangs is one failure, which shows where it hangs (``tests/support/hangs.py``)."""

import subprocess
import sys
from pathlib import Path

from tests.support.cli import ROOT

SUITE = """
import asyncio, contextlib, pytest

pytest_plugins = ["tests.support.hangs"]
never = asyncio.Event()

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="session")
async def lasting():
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(never.wait())
        yield
        waits.cancel()

@pytest.fixture
async def hangs_before():
    await never.wait()  # the setup

@pytest.fixture
async def hangs_after():
    yield
    await never.wait()  # the teardown

async def test_hangs(lasting):
    await never.wait()  # the test

async def test_setup(lasting, hangs_before): ...

async def test_teardown(lasting, hangs_after): ...

async def test_swallows(lasting):
    with contextlib.suppress(asyncio.CancelledError):
        await never.wait()

async def test_whole(lasting): ...
"""


def test_what_hangs_fails_alone_and_is_shown(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\ntimeout = 1\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert {line for line in ran.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))} == {
        "FAILED test_few.py::test_hangs - TimeoutError",
        "ERROR test_few.py::test_setup - TimeoutError",
        "ERROR test_few.py::test_teardown - TimeoutError",
        "FAILED test_few.py::test_swallows - TimeoutError",
    }, ran.stdout
    assert "2 failed, 2 passed, 2 errors" in ran.stdout  # passed: the whole one, and the one before its teardown
    for where in ("test", "setup", "teardown"):
        assert f">       await never.wait()  # the {where}" in ran.stdout
