"""Templates and traces of the harness server that stands in for a real one (``tests/support/harness_server.py``)."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.support import harness_server


class HarnessDouble:
    """One server's folder: what it is told to do wrong, and what was asked of it."""

    def __init__(self, folder: Path, *faults: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.env = {"HARNESS_STATE": str(folder), "HARNESS_FAULTS": ",".join(faults)}

    def agent(self, **fields: Any) -> dict[str, Any]:
        """Return the template's ``agent``."""
        return {
            "kind": "harnessd",
            "command": [sys.executable, harness_server.__file__],
            **fields,
            "env": {**self.env, **fields.get("env", {})},
        }

    @property
    def posts(self) -> list[str]:
        """The conversation of each run that was started, in order."""
        return [line.split()[0] for line in self._lines("posts")]

    @property
    def servers(self) -> list[str]:
        """The process that started each run."""
        return [line.split()[1] for line in self._lines("posts")]

    @property
    def cancels(self) -> int:
        """How often a run's end was asked for."""
        return len(self._lines("cancels"))

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


async def start_alone(double: HarnessDouble, port: int) -> asyncio.subprocess.Process:
    """Start the server as an image without our agent would, and return when it listens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, harness_server.__file__),
        env={**double.env, "HARNESS_ADDR": f"127.0.0.1:{port}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    while b"listening on" not in await process.stdout.readline():
        pass
    return process


def events_of(text: str) -> list[dict[str, Any]]:
    """Return a run's events from JSON lines."""
    return [json.loads(line) for line in text.splitlines() if line]
