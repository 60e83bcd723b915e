"""What ``taskrunner bench`` does."""

import json
from collections.abc import Sequence
from contextlib import aclosing

import click

from cli import render
from cli.bench.figures import Figure, Missing, table
from cli.bench.measuring import measure
from cli.errors import INTERRUPTED
from cli.processes import run_until_signalled


def bench(names: Sequence[str], n: int | None, image: str | None, *, as_json: bool) -> int:
    """Measure the figures, print them, and return 1 where a target is missed."""
    figures: list[Figure | Missing] = []

    async def work() -> None:
        async with aclosing(measure(names, n, image, render.say)) as measured:
            async for figure in measured:
                figures.append(figure)
                if as_json:
                    click.echo(json.dumps(figure.as_json()))

    run_until_signalled(work())
    if len(figures) < len(names):
        return INTERRUPTED
    measured = [figure for figure in figures if isinstance(figure, Figure)]
    if not as_json:
        for missing in (figure for figure in figures if isinstance(figure, Missing)):
            render.say(f"{missing.name} is not measured: {missing.not_measured}")
        click.echo(table(measured))
    return 0 if all(figure.holds for figure in measured) else 1
