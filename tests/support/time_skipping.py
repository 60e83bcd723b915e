"""A Temporal server whose clock jumps ahead while nothing happens.

The SDK's own download is tried first; where it cannot be reached, the same server comes from Maven Central and
needs Java.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from tests.support.search_attributes import register_search_attributes

_VERSION = "1.31.0"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>tests</groupId><artifactId>test-server</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.temporal</groupId><artifactId>temporal-test-server</artifactId><version>{_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>2.0.16</version></dependency>
  </dependencies>
</project>
"""


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "taskrunner" / f"test-server-{_VERSION}"


def _unavailable(reason: str) -> None:
    text = f"the workflow tests need Temporal's time-skipping server: {reason}"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def _from_maven(folder: Path) -> Path:
    """Return a program that starts the server from the jars in ``folder``, after fetching what is missing."""
    program = folder / "test-server"
    if not program.exists():
        for tool in ("java", "mvn"):
            if shutil.which(tool) is None:
                _unavailable(f"its download cannot be reached and {tool} is not on PATH")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "pom.xml").write_text(_POM)
        fetch = [
            "mvn",
            "-q",
            "-B",
            "dependency:copy-dependencies",
            f"-DoutputDirectory={partial}",
            "-DincludeScope=runtime",
        ]
        done = subprocess.run(fetch, cwd=partial, capture_output=True, text=True, check=False)
        if done.returncode:
            _unavailable(f"Maven could not fetch it: {done.stdout[-500:]}")
        shell = (
            f"#!/bin/sh\nexec java -XX:TieredStopAtLevel=1 -cp '{folder}/*' io.temporal.testserver.TestServer \"$@\"\n"
        )
        (partial / "test-server").write_text(shell)
        (partial / "test-server").chmod(0o755)
        if not folder.exists():
            partial.rename(folder)
    return program


@asynccontextmanager
async def time_skipping_environment() -> AsyncIterator[WorkflowEnvironment]:
    """Start the server, with the search attributes registered."""
    cached = _cache() / "test-server"
    environment: WorkflowEnvironment | None = None
    if not cached.exists():
        try:
            environment = await WorkflowEnvironment.start_time_skipping(data_converter=pydantic_data_converter)
        except RuntimeError:
            await asyncio.to_thread(_from_maven, _cache())
    if environment is None:
        environment = await WorkflowEnvironment.start_time_skipping(
            data_converter=pydantic_data_converter, test_server_existing_path=str(cached)
        )
    async with environment:
        await register_search_attributes(environment.client)
        yield environment
