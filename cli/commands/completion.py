"""``taskrunner completion``: the script by which a shell asks for completions."""

import click
from click.shell_completion import get_completion_class

from cli.reading import ReadingCommand


@click.command(cls=ReadingCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script that completes commands, options, task ids and names of templates in your shell.

    \b
    Examples:
      echo 'eval "$(taskrunner completion bash)"' >> ~/.bashrc
      echo 'eval "$(taskrunner completion zsh)"' >> ~/.zshrc
      taskrunner completion fish > ~/.config/fish/completions/taskrunner.fish
    """  # noqa: D301
    from cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover
        raise click.UsageError(f"click knows no completion for {shell}")
    script = kind(cli, {}, "taskrunner", "_TASKRUNNER_COMPLETE")
    click.echo(script.source_template % script.source_vars())
    return 0
