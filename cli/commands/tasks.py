"""The commands that ask the task API about tasks."""

from pathlib import Path

import click

from cli import completing
from cli.commands.run import task_options
from cli.reading import ReadingCommand
from messages.statuses import TaskStatus, TaskStep

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
follow_option = click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
id_argument = click.argument("task_id", metavar="ID", shell_complete=completing.task_ids())
unfinished_id_argument = click.argument(
    "task_id", metavar="ID", shell_complete=completing.task_ids("running", "queued")
)


@click.command()
@task_options
def submit(as_json: bool, env: tuple[str, ...], **options: str | None) -> int:
    """Submit a task to a service that runs, and print its id. PROMPT "-" reads it from stdin.

    \b
    Examples:
      taskrunner submit 'make check'
      taskrunner logs -f "$(taskrunner submit --repo ~/project 'make check')"
      taskrunner submit --id build-1742 --template worktree - < prompt.txt
    """  # noqa: D301
    from cli import api_commands

    api_commands.submit(as_json, env, **options)
    return 0


class _Step(click.Choice[str]):
    """A step by its wire name, or as people are shown it."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.replace(" ", "_"), param, ctx)


@click.command("list", cls=ReadingCommand)
@click.option("--status", type=click.Choice([s.value for s in TaskStatus]), help="Only tasks of this status.")
@click.option("--step", type=_Step([s.value for s in TaskStep]), help="Only tasks that are at this step.")
@click.option("--backend", type=click.Choice(completing.BACKENDS), help="Only tasks on this backend.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where an earlier list ended.")
@as_json_option
def list_tasks(as_json: bool, **filters: str | int | None) -> int:
    """List tasks, newest first.

    \b
    Examples:
      taskrunner list --status running
      taskrunner list --json | jq -r '.tasks[].id'
    """  # noqa: D301
    from cli import api_commands

    api_commands.list_tasks(as_json, **filters)
    return 0


@click.command(cls=ReadingCommand)
@id_argument
@as_json_option
def show(task_id: str, as_json: bool) -> int:
    """Show one task, whole.

    \b
    Examples:
      taskrunner show t-1
      taskrunner show t-1 --json | jq .workspace
    """  # noqa: D301
    from cli import api_commands

    api_commands.show(task_id, as_json)
    return 0


@click.command(cls=ReadingCommand)
@id_argument
@follow_option
@click.option("--boot", is_flag=True, help="Print how its workspace came up instead: the newest 50 entries an attempt.")
@as_json_option
def logs(task_id: str, follow: bool, boot: bool, as_json: bool) -> int:
    """Print the output of a task's agent, byte by byte (with --json: one object a piece).

    With -f it waits for a task that has not begun, and goes on where it was when the service was away.

    \b
    Examples:
      taskrunner logs t-1 | tail
      taskrunner logs -f t-1
      taskrunner logs --boot t-1
    """  # noqa: D301
    from cli import api_commands

    (api_commands.boot_log if boot else api_commands.logs)(task_id, follow, as_json)
    return 0


@click.command(cls=ReadingCommand)
@id_argument
@follow_option
@as_json_option
def events(task_id: str, follow: bool, as_json: bool) -> int:
    """Print what happened to a task, one line an event.

    \b
    Examples:
      taskrunner events t-1
      taskrunner events -f t-1 --json | jq -r .current
    """  # noqa: D301
    from cli import api_commands

    api_commands.events(task_id, follow, as_json)
    return 0


@click.command(cls=ReadingCommand)
@id_argument
@click.option(
    "--bundle", metavar="FILE", type=click.Path(path_type=Path), help="Save it as a git bundle, to fetch from, instead."
)
@as_json_option
def diff(task_id: str, bundle: Path | None, as_json: bool) -> int:
    """Print what a task's agent changed, as a patch for `git apply`.

    A change that is on no branch of yours, as of the backend local, is kept as a git bundle: save it with
    --bundle FILE, then `git fetch FILE taskrunner/ID` gets its commits. `taskrunner apply ID` does all of this.

    \b
    Examples:
      taskrunner diff t-1
      taskrunner diff t-1 | git apply --stat
      taskrunner diff t-1 --bundle change.bundle
    """  # noqa: D301
    from cli import api_commands

    if bundle is not None:
        api_commands.save_bundle(task_id, bundle, as_json)
    else:
        api_commands.diff(task_id, as_json)
    return 0


@click.command()
@unfinished_id_argument
@as_json_option
def cancel(task_id: str, as_json: bool) -> int:
    """Cancel a task. Its change so far is kept and its workspace taken down.

    The service does that, and this does not wait for it. Where none runs, the embedded stack does, and this waits.

    \b
    Examples:
      taskrunner cancel t-1
      taskrunner cancel t-1 && taskrunner events -f t-1
    """  # noqa: D301
    from cli import api_commands

    api_commands.cancel(task_id, as_json)
    return 0
