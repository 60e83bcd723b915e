"""The workspace agent's boot, alone: in which order its outcome is noted and reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.boot import Boot
from agent.config import Config, read_config
from agent.outbox import FileQueue
from agent.processes import Children


class Watched(FileQueue):
    """Notes, when a message has been kept and can be delivered, what the state folder says of the boot."""

    def __init__(self, state: Path) -> None:
        self.steps: list[str] = []
        self._state = state
        super().__init__(state / "spool", "verdict", lambda: self.steps.append(f"deliverable, {self._phase()}"))

    def put(
        self, path: str, body: dict[str, Any], *, durable: bool = True, kept: Callable[[], None] = lambda: None
    ) -> None:
        def note() -> None:
            self.steps.append(f"{len(list((self._state / 'spool').glob('*.json')))} kept, {self._phase()}")
            kept()

        super().put(path, body, durable=durable, kept=note)

    def _phase(self) -> str:
        path = self._state / "boot.json"
        return str(json.loads(path.read_text())["phase"]) if path.exists() else "nothing noted"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"name": "tr-w-1", "workspace": str(tmp_path), "state": str(tmp_path / "state")}))
    (tmp_path / "state").mkdir()
    return read_config(path, serving=False)


@pytest.mark.parametrize(("workspace", "phase"), [(".", "ready"), ("missing", "failed")])
def test_the_report_is_kept_then_the_outcome_noted_then_the_report_delivered(
    config: Config, workspace: str, phase: str
) -> None:
    """S12: killed anywhere in between, a restart neither loses the report nor doubles it."""
    verdicts = Watched(config.state)
    Boot(config._replace(workspace=config.workspace / workspace), {}, Children(), verdicts=verdicts).run()
    assert verdicts.steps == ["1 kept, nothing noted", f"deliverable, {phase}"]


def test_a_report_that_was_kept_before_a_kill_is_not_doubled(config: Config) -> None:
    """S12."""
    Watched(config.state).put("ready", {})
    verdicts = Watched(config.state)
    boot = Boot(config, {}, Children(), verdicts=verdicts)
    boot.run()
    assert boot.progress.phase == "ready"
    assert verdicts.pending() == 1
