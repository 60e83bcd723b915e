"""``taskrunner bench`` measures what it says, prints it as promised, and leaves nothing behind."""

import json
import tempfile
from pathlib import Path

import pytest

from cli.bench.names import NAMES
from tests.support.cli import private_cli
from tests.support.docker import IMAGE, Daemon

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


def test_containers_are_measured_in_turn_with_docker_run(daemon: Daemon, leaves_no_container: None) -> None:
    with private_cli(DOCKER_HOST=daemon.host) as cli:
        finished = cli.run("bench", "--json", "--n", "2", "--only", "container_ready", "--image", IMAGE, timeout=110)
    assert finished.code in {0, 1}, finished
    figure = json.loads(finished.out)
    assert (figure["name"], figure["unit"], figure["n"]) == ("container_ready", "s", 2)
    assert 0 < figure["floor_p50"] < 60
    assert figure["ratio"] == pytest.approx(figure["p50"] / figure["floor_p50"], rel=0.05)


def test_without_docker_or_an_image_it_says_so_and_misses_no_target(daemon: Daemon) -> None:
    only = ("bench", "--only", "container_ready")
    with private_cli(DOCKER_HOST=f"unix://{daemon.folder}/none") as cli:
        finished = cli.run(*only)
        assert finished.code == 0, finished
        assert "container_ready is not measured: Docker does not answer at unix://" in finished.err
        cli.env["DOCKER_HOST"] = daemon.host
        finished = cli.run(*only, "--image", "not-there:1", "--json")
        assert finished.code == 0, finished
        why = "Docker has no image not-there:1: docker pull not-there:1"
        assert json.loads(finished.out) == {"name": "container_ready", "not_measured": why}
        cli.env["DOCKER_HOST"] = "tcp://192.0.2.1:2375"
        assert "Docker is on 192.0.2.1: bench measures with a daemon of this machine" in cli.run(*only).err


def test_a_figure_that_nobody_knows_is_refused() -> None:
    with private_cli() as cli:
        finished = cli.run("bench", "--only", "speed")
    assert finished.code == 2
    assert all(name in finished.err for name in NAMES)
