"""The figures of ``taskrunner bench``: percentiles, ratios, and whether targets hold."""

from cli.bench.figures import Figure, percentile, table


def test_percentiles_lie_between_their_neighbours() -> None:
    assert percentile([7.0], 95) == 7.0
    assert percentile([1.0, 3.0], 50) == 2.0
    assert percentile([float(n) for n in range(101)], 95) == 95.0


def test_a_missed_target_is_told() -> None:
    kept = Figure.of("tasks_per_second", "1/s", [8.0, 8.0], [10.0, 10.0])
    missed = Figure.of("tasks_per_second", "1/s", [7.0, 7.0], [10.0, 10.0])
    late = Figure("ready_to_session", "ms", 10, 20, n=9, floor_p50=10, ratio=1.0, ratio_p95=1.6)
    assert (kept.holds, missed.holds, late.holds) == (True, False, False)
    shown = table([kept, missed]).splitlines()
    assert "holds" in shown[1]
    assert "MISSED" in shown[2]
