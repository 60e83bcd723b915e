"""``taskrunner bench`` measures what it says, prints it as promised, and leaves nothing behind."""

import json
import tempfile
from pathlib import Path

import pytest

from cli.bench.names import NAMES
from tests.support.cli import private_cli

FEW = ("cli_help", "first_output_warm", "history_events", "ready_to_session", "tasks_per_second")


def test_each_figure_has_its_shape_and_nothing_is_left() -> None:
    with private_cli() as cli, tempfile.TemporaryDirectory(prefix="tr-bench-") as folder:
        cli.env["TMPDIR"] = folder
        only = [part for name in FEW for part in ("--only", name)]
        finished = cli.run("bench", "--json", "--n", "2", *only, timeout=110)
        assert finished.code in {0, 1}, finished  # whether targets hold is this machine's affair
        figures = {figure["name"]: figure for figure in map(json.loads, finished.out.splitlines())}
        assert list(figures) == list(FEW), finished
        assert list(Path(folder).iterdir()) == []
        assert not cli.home.exists()
    for figure in figures.values():
        assert {"name", "unit", "p50", "p95", "n"} <= figure.keys()
        assert 0 < figure["p50"] <= figure["p95"]
        assert figure["n"] == 2
    for name in ("ready_to_session", "tasks_per_second"):
        figure = figures[name]
        assert figure["ratio"] == pytest.approx(figure["p50"] / figure["floor_p50"], rel=0.05)
        assert figure["ratio_p95"] > 0
    assert figures["history_events"]["p95"] <= 40


def test_a_figure_that_nobody_knows_is_refused() -> None:
    with private_cli() as cli:
        finished = cli.run("bench", "--only", "speed")
    assert finished.code == 2
    assert all(name in finished.err for name in NAMES)
