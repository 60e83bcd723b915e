"""The commands that are processes: the embedded stack, a worker, the API; and the migration before them."""

import click

Port = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--port", type=Port, metavar="PORT", default=8070, show_default=True, help="Port of the API; 0 for a free one."
)
@click.option("--temporal-port", type=Port, metavar="PORT", default=7233, show_default=True, help="Port of Temporal.")
@click.option("--ui-port", type=Port, metavar="PORT", default=8233, show_default=True, help="Port of Temporal's UI.")
@click.option("--json", "as_json", is_flag=True, help="Print where everything listens as JSON.")
@click.option("--while-used", nargs=2, type=int, hidden=True, help="Descriptors of the report pipe and start.lock.")
def dev(port: int, temporal_port: int, ui_port: int, as_json: bool, while_used: tuple[int, int] | None) -> int:
    """Run the whole embedded stack in the foreground: Temporal with its UI, PostgreSQL, the API and a worker.

    Everything listens on the loopback interface and keeps its state in TASKRUNNER_HOME. Ctrl-C stops it; tasks that run
    then go on at the next start.

    \b
    Examples:
      taskrunner dev
      taskrunner dev --port 0 --temporal-port 0 --ui-port 0
    """  # noqa: D301
    from cli import processes
    from cli.stack import Ports
    from messages.settings import read_settings

    settings = read_settings()
    if while_used:
        return processes.dev_while_used(settings, report_fd=while_used[0], start_lock_fd=while_used[1])
    return processes.dev(settings, Ports(port, temporal_port, ui_port), as_json=as_json)


@click.command()
def worker() -> int:
    """Run a worker of this host: it carries out tasks, and brings up their workspaces here.

    Temporal is found as TEMPORAL_ADDRESS or temporal.toml say, PostgreSQL by TASKRUNNER_DATABASE_URL, and workspaces
    report to TASKRUNNER_PUBLIC_URL.

    \b
    Examples:
      taskrunner worker
      TEMPORAL_ADDRESS=temporal.example:7233 TASKRUNNER_PUBLIC_URL=https://tasks.example taskrunner worker
    """  # noqa: D301
    from cli import processes
    from messages.settings import read_settings

    return processes.worker(read_settings())


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=Port, metavar="PORT", default=8070, show_default=True, help="The port; 0 for a free one.")
@click.option("--ui-url", metavar="URL", help="Where people see Temporal's UI; tasks then link to it.")
def api(host: str, port: int, ui_url: str | None) -> int:
    """Serve the task API and the callbacks of workspaces.

    Temporal is found as TEMPORAL_ADDRESS or temporal.toml say, PostgreSQL by TASKRUNNER_DATABASE_URL. The API token is
    TASKRUNNER_API_TOKEN, else the one in TASKRUNNER_HOME, made there at the first start.

    \b
    Examples:
      taskrunner api
      taskrunner api --host 0.0.0.0 --ui-url https://temporal.example
    """  # noqa: D301
    from cli import processes
    from messages.settings import read_settings

    return processes.api(read_settings(), host=host, port=port, ui_url=ui_url)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(as_json: bool) -> int:
    """Bring the database of TASKRUNNER_DATABASE_URL to this release's schema.

    \b
    Examples:
      taskrunner migrate
      TASKRUNNER_DATABASE_URL=postgresql://me@db/tasks taskrunner migrate
    """  # noqa: D301
    from cli import processes
    from messages.settings import read_settings

    return processes.migrate_database(read_settings(), as_json=as_json)
