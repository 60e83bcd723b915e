"""``taskrunner apply``: what an agent changed, brought into the user's repository."""

import click

from cli.commands.tasks import as_json_option, id_argument


@click.command()
@id_argument
@click.option("--branch-only", is_flag=True, help="Only get the branch taskrunner/ID; merge nothing.")
@as_json_option
def apply(task_id: str, branch_only: bool, as_json: bool) -> int:
    """Merge what a task's agent changed into the branch that you are on.

    The branch taskrunner/ID is fetched into the repository that you are in, where it is not there already, and merged
    with `git merge`. A merge that git refuses, as for uncommitted changes in its way, changes nothing. A conflict is
    yours to resolve (exit code 1). What is merged already stays as it is.

    \b
    Examples:
      taskrunner apply t-1
      taskrunner apply t-1 --branch-only && git log -p taskrunner/t-1
    """  # noqa: D301
    from cli import applying

    return applying.apply(task_id, branch_only=branch_only, as_json=as_json)
