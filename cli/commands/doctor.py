"""``taskrunner doctor``: what is missing here, and what mends it."""

import click

from cli.commands.tasks import as_json_option


@click.command()
@click.option("--docker", is_flag=True, help="Count Docker among what is needed.")
@as_json_option
def doctor(docker: bool, as_json: bool) -> int:
    """Check each thing that is needed here, and say how to mend it. Nothing is changed.

    What is needed depends on how it is set up: TASKRUNNER_API_URL of a service, TASKRUNNER_DATABASE_URL of your own
    servers, or neither, for the embedded stack.

    Exit codes: 0 everything needed works, 1 something needed is broken, 2 wrong usage.
    """
    from cli.doctor.report import report

    return report(docker=docker, as_json=as_json)
