"""``taskrunner templates``: what tasks can be made from."""

import click

from cli import completing
from cli.commands.tasks import as_json_option
from cli.main import LazyGroup
from cli.reading import ReadingCommand

_COMMANDS = {
    "list": ("cli.commands.templates:list_templates", "List the templates."),
    "show": ("cli.commands.templates:show_template", "Show one template and its provision timeout."),
}


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
def templates() -> None:
    """List and show templates."""


@click.command("list", cls=ReadingCommand)
@as_json_option
def list_templates(as_json: bool) -> int:
    """List the templates that the service knows; where none runs, those that one started here would know.

    \b
    Examples:
      taskrunner templates list
      taskrunner templates list --json | jq -r '.templates[].name'
    """  # noqa: D301
    from cli import api_commands

    api_commands.list_templates(as_json)
    return 0


@click.command("show", cls=ReadingCommand)
@click.argument("name", shell_complete=completing.templates)
@as_json_option
def show_template(name: str, as_json: bool) -> int:
    """Show one template and its provision timeout.

    \b
    Examples:
      taskrunner templates show worktree
      taskrunner templates show worktree --json | jq .provision_timeout_seconds
    """  # noqa: D301
    from cli import api_commands

    api_commands.show_template(name, as_json)
    return 0
