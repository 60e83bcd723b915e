"""A measured figure: its percentiles, its floor, its target, and how it is shown."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from cli import render


@dataclass(frozen=True)
class Bound:
    """What a figure must hold: one of its numbers, at most or at least."""

    number: str
    limit: float
    at_least: bool = False

    def holds(self, figure: "Figure") -> bool:
        """Tell whether ``figure`` keeps it; one that lacks the number does not."""
        value = getattr(figure, self.number)
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.number} {'≥' if self.at_least else '≤'} {self.limit:g}"


TARGETS: dict[str, tuple[Bound, ...]] = {
    "ready_to_session": (Bound("ratio", 1.3), Bound("ratio_p95", 1.5)),
    "tasks_per_second": (Bound("ratio", 0.8, at_least=True),),
    "first_output_warm": (Bound("p50", 0.5),),
    "first_output_cold": (Bound("p50", 6.0),),
    "cli_help": (Bound("p50", 0.2),),
    "history_events": (Bound("p95", 40),),
    "container_ready": (Bound("ratio", 1.5),),
}
"""By figure. One without a target (``poller_2s``) is there to compare with."""


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    ``ratio`` is its median over the floor's of the same run, ``ratio_p95`` that of the 95th percentiles.
    """

    name: str
    unit: str
    p50: float
    p95: float
    n: int
    floor_p50: float | None = None
    ratio: float | None = None
    ratio_p95: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, samples: Sequence[float], floor: Sequence[float] = ()) -> "Figure":
        """Return the figure of these samples, compared with the floor's where there are any."""
        p50, p95 = percentile(samples, 50), percentile(samples, 95)
        if not floor:
            return cls(name, unit, _rounded(p50), _rounded(p95), len(samples))
        floor_p50, floor_p95 = percentile(floor, 50), percentile(floor, 95)
        return cls(
            name,
            unit,
            _rounded(p50),
            _rounded(p95),
            len(samples),
            floor_p50=_rounded(floor_p50),
            ratio=round(p50 / floor_p50, 2),
            ratio_p95=round(p95 / floor_p95, 2),
        )

    @property
    def targets(self) -> tuple[Bound, ...]:
        """What it must hold."""
        return TARGETS.get(self.name, ())

    @property
    def holds(self) -> bool:
        """Whether it holds all of them."""
        return all(bound.holds(self) for bound in self.targets)

    def as_json(self) -> dict[str, Any]:
        """Return its numbers; what was not measured is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured, and why. That misses no target."""

    name: str
    not_measured: str

    def as_json(self) -> dict[str, Any]:
        """Return both."""
        return asdict(self)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile, interpolated between the two samples that are nearest to it."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def table(figures: Sequence[Figure]) -> str:
    """Return the figures with their targets, and whether they hold, for a terminal."""
    head = ("FIGURE", "UNIT", "P50", "P95", "N", "FLOOR P50", "RATIO", "RATIO P95", "TARGET", "")
    rows = [
        (
            figure.name,
            figure.unit,
            f"{figure.p50:g}",
            f"{figure.p95:g}",
            str(figure.n),
            *("-" if value is None else f"{value:g}" for value in (figure.floor_p50, figure.ratio, figure.ratio_p95)),
            ", ".join(map(str, figure.targets)) or "-",
            _verdict(figure),
        )
        for figure in figures
    ]
    return render.table(head, rows)


def _verdict(figure: Figure) -> str:
    if not figure.targets:
        return ""
    return click.style("holds", fg="green") if figure.holds else click.style("MISSED", fg="red")
