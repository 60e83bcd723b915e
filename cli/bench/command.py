"""What ``taskrunner bench`` does."""

import json
from collections.abc import Sequence
from contextlib import aclosing

import click

from cli import render
from cli.bench.figures import Figure, table
from cli.bench.measuring import measure
from cli.errors import INTERRUPTED
from cli.processes import run_until_signalled


def bench(names: Sequence[str], n: int | None, *, as_json: bool) -> int:
    """Measure the figures, print them, and return 1 where a target is missed."""
    figures: list[Figure] = []

    async def work() -> None:
        async with aclosing(measure(names, n, render.say)) as measured:
            async for figure in measured:
                figures.append(figure)
                if as_json:
                    click.echo(json.dumps(figure.as_json()))

    run_until_signalled(work())
    if len(figures) < len(names):
        return INTERRUPTED
    if not as_json:
        click.echo(table(figures))
    return 0 if all(figure.holds for figure in figures) else 1
