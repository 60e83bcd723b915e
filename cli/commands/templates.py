"""``taskrunner templates``: what tasks can be made from."""

import click

from cli.commands.tasks import as_json_option
from cli.main import LazyGroup

_COMMANDS = {
    "list": ("cli.commands.templates:list_templates", "List the templates that the service knows."),
    "show": ("cli.commands.templates:show_template", "Show one template and its provision timeout."),
}


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
def templates() -> None:
    """List and show templates."""


@click.command("list")
@as_json_option
def list_templates(as_json: bool) -> int:
    """List the templates that the service knows."""
    from cli import asking

    asking.list_templates(as_json)
    return 0


@click.command("show")
@click.argument("name")
@as_json_option
def show_template(name: str, as_json: bool) -> int:
    """Show one template and its provision timeout."""
    from cli import asking

    asking.show_template(name, as_json)
    return 0
