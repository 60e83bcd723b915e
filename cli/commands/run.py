"""``taskrunner run``, and the options that describe a task."""

import gc
from collections.abc import Callable

import click

from cli import completing

_OPTIONS = (
    click.argument("prompt"),
    click.option(
        "--backend",
        metavar="BACKEND",
        shell_complete=completing.backends,
        help=f"Where the workspace lives: {', '.join(completing.BACKENDS[:-1])} or {completing.BACKENDS[-1]}.",
    ),
    click.option(
        "--template",
        metavar="NAME",
        shell_complete=completing.templates,
        help="The template to run from (see: taskrunner templates list).",
    ),
    click.option(
        "--repo",
        metavar="PATH|URL",
        shell_complete=completing.folders,
        help="A git repository; by default the one you are in, but with local alone, as backend or template, none.",
    ),
    click.option("--ref", metavar="REF", help="The commit, branch or tag to start from; by default HEAD."),
    click.option(
        "--agent",
        metavar="NAME",
        shell_complete=completing.agents,
        help="The agent in place of the template's, for example shell.",
    ),
    click.option("--timeout", metavar="DURATION", help="How long the session may take, for example 90s or 2h."),
    click.option("--id", "task_id", metavar="ID", help="The task's id; the same id and request is the same task."),
    click.option(
        "--env",
        "env",
        metavar="NAME",
        multiple=True,
        help="Give the agent this variable of your environment; its value is kept secret. May be repeated.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the task as JSON on stdout."),
)


def task_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the argument and options that describe a task."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@task_options
def run(as_json: bool, env: tuple[str, ...], **options: str | None) -> int:
    """Submit a task, follow it, and exit as it ends.

    Steps go to stderr, the agent's output to stdout. PROMPT is what the agent is told ("-" reads it from stdin). In a
    git repository the task works on a worktree of its HEAD and leaves its change on a branch; your checkout stays as it
    is. Where no service answers, the embedded stack runs for as long as it is needed, and Ctrl-C cancels the task.

    \b
    Examples:
      taskrunner run 'make check'
      taskrunner run --repo ~/project --ref main --timeout 30m - < prompt.txt
      taskrunner run --json 'date > made' | jq -r .result.branch
    """  # noqa: D301 (click's mark for lines to keep)
    # What loads is kept, so looking for garbage in it meanwhile is for nothing: a tenth of the time that it takes.
    gc.disable()
    from cli import running
    from messages.settings import read_settings

    settings = read_settings()
    return running.run(settings, running.build_request(env=env, **options), as_json=as_json)
