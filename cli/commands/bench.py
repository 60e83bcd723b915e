"""``taskrunner bench``: what the parts of a task cost on this machine."""

import click

from cli.bench.names import NAMES


@click.command()
@click.option(
    "--only", "names", metavar="NAME", multiple=True, type=click.Choice(list(NAMES)), help="Only this figure."
)
@click.option("--n", "n", type=click.IntRange(1, 10_000), help="How often each is measured.")
@click.option("--image", "image", metavar="IMAGE", help="The image of container_ready; Docker has to have it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a figure.")
def bench(names: tuple[str, ...], n: int | None, image: str | None, as_json: bool) -> int:
    """Measure this installation against its targets, on a stack of its own that is removed afterwards.

    Quote the ratios: they compare with a minimal workflow measured in turn with ours, so the machine's speed matters
    little to them. Exit code 1 where a target is missed.
    """
    from cli.bench import command

    return command.bench(names or tuple(NAMES), n, image, as_json=as_json)
