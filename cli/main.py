"""The program: its groups of commands, loaded when they are used, and how errors end it.

Only click is imported here: ``taskrunner --help`` answers in a fraction of the time that the parts take to load.
"""

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from cli.errors import INTERRUPTED, CliError
from cli.terminal import discard, wants_colours

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# httpx loads a command line of its own, a fifth of all that a command of ours loads, wherever rich is installed.
sys.modules.setdefault("httpx._main", None)  # pyright: ignore[reportArgumentType] (what import takes for missing)

VERSION = "0.2.0"

_COMMANDS = {
    "run": ("cli.commands.run:run", "Submit a task, follow it, and exit as it ends."),
    "submit": ("cli.commands.tasks:submit", "Submit a task and print its id."),
    "list": ("cli.commands.tasks:list_tasks", "List tasks, newest first."),
    "show": ("cli.commands.tasks:show", "Show one task, whole."),
    "logs": ("cli.commands.tasks:logs", "Print the output of a task's agent."),
    "diff": ("cli.commands.tasks:diff", "Print what a task's agent changed."),
    "apply": ("cli.commands.results:apply", "Merge what a task's agent changed into the branch that you are on."),
    "events": ("cli.commands.tasks:events", "Print what happened to a task."),
    "cancel": ("cli.commands.tasks:cancel", "Cancel a task."),
    "templates": ("cli.commands.templates:templates", "List and show templates."),
    "dev": ("cli.commands.processes:dev", "Run the whole embedded stack in the foreground."),
    "worker": ("cli.commands.processes:worker", "Run a worker of this host."),
    "api": ("cli.commands.processes:api", "Serve the task API and the callbacks of workspaces."),
    "migrate": ("cli.commands.processes:migrate", "Bring the database to this release."),
    "doctor": ("cli.commands.doctor:doctor", "Check what is needed here, and say how to mend it."),
    "bench": ("cli.commands.bench:bench", "Measure what the parts of a task cost here."),
    "completion": ("cli.commands.completion:completion", "Print the script that completes commands in your shell."),
}

_SECTIONS = {
    "Tasks": ("run", "submit", "list", "show", "events", "cancel"),
    "Results": ("logs", "diff", "apply"),
    "Services": ("dev", "worker", "api", "migrate", "doctor", "bench"),
}
"""Under which heading the help lists a command; what stands under none comes last."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def __init__(
        self,
        *args: object,
        commands_by_name: Mapping[str, tuple[str, str]],
        sections: Mapping[str, Sequence[str]] | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        self._by_name = commands_by_name
        self._sections = sections or {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the commands in the order in which a reader meets them."""
        return list(self._by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command."""
        if cmd_name not in self._by_name:
            return None
        module, _, attribute = self._by_name[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by their purpose, without importing any."""
        others = [name for name in self._by_name if not any(name in names for names in self._sections.values())]
        width = max(map(len, self._by_name))
        for heading, names in (*self._sections.items(), ("More" if self._sections else "Commands", others)):
            if names:
                with formatter.section(heading):
                    formatter.write_dl([(f"{name:<{width}}", self._by_name[name][1]) for name in names])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete the names of commands without importing any."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=text) for name, (_, text) in self._by_name.items() if name.startswith(incomplete)
        ]

    def invoke(self, ctx: click.Context) -> object:
        """Call the command; name it in errors of its options, of which click does not say whose they are."""
        try:
            return super().invoke(ctx)
        except click.UsageError as e:
            name = ctx.invoked_subcommand
            if e.ctx is None and name and (command := self.get_command(ctx, name)) is not None:
                e.ctx = click.Context(command, ctx, name)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for one that is not there."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            import difflib

            near = difflib.get_close_matches(args[0], self._by_name, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see: taskrunner --help"
            raise click.UsageError(f"{e.message.rstrip('.')}; {hint}", ctx) from None


@click.group(
    cls=LazyGroup,
    commands_by_name=_COMMANDS,
    sections=_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="taskrunner")
def cli() -> None:
    """Give a coding agent a workspace that is known to work, exactly once, and never leak it.

    `taskrunner run PROMPT` is all that it takes: where no service answers, it starts the embedded stack for as long as
    it needs it. What it leaves behind can be looked at without a service too: show, logs, diff, apply.

    Exit codes: 0 completed, 1 failed, cancelled or not possible (as for a task that there is not), 2 wrong usage, 3
    the service cannot be reached or started, 130 interrupted.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; every failure is one line on stderr."""
    _fill_standard_streams()
    if sys.stdout is None:
        return _fail("stdout is closed; redirect it, to /dev/null where nobody reads it", 2)
    try:
        code = cli.main(args=args, prog_name="taskrunner", standalone_mode=False, color=wants_colours())
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        return 2
    except click.UsageError as e:
        return _fail(_usage_line(e), 2)
    except click.ClickException as e:
        return _fail(e.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads what was done; see also ReadingCommand
        return 1
    except Exception as e:
        if os.environ.get("TASKRUNNER_DEBUG"):
            raise
        return _fail(*explain(e))
    finally:
        _drop_what_cannot_be_written()


def _drop_what_cannot_be_written() -> None:
    """Keep the interpreter from trying again, as it ends, to write what stdout does not take."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


def _fill_standard_streams() -> None:
    """Give what the caller has closed to /dev/null: else the next file that is opened would be stdout to a child."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # becomes the lowest that is free: this one
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115


def _is_of_stdout(error: OSError) -> bool:
    """Tell whether it is our own output that could not be written."""
    return error.filename is None and error.errno in _UNWRITABLE


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def explain(error: Exception) -> tuple[str, int]:
    """Return what to tell the user of an error, and the exit code: a part's own text, else that it is a defect."""
    if isinstance(error, CliError):
        return str(error), error.exit_code
    for module, name, exit_code in _PART_ERRORS:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, getattr(loaded, name)):
            return str(error), exit_code
    if isinstance(error, OSError) and _is_of_stdout(error):
        return f"the output cannot be written: {error.strerror}", 1
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_folder():
        here = os.environ.get("PWD", "the folder that you are in")
        return f"{here} is gone; change to a folder that is there", 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 1
    return f"internal error: {type(error).__name__}: {error}; TASKRUNNER_DEBUG=1 shows where", 1


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())  # noqa: PTH109
    except FileNotFoundError:
        return False


_PART_ERRORS = (
    ("messages.settings", "SettingsError", 2),
    ("messages.keys", "KeysError", 3),
    ("workers.temporal_server", "PortInUse", 2),
    ("workers.errors", "StackError", 3),
    ("store.errors", "RegistryUnavailable", 3),
    ("store.errors", "RegistryError", 2),
)
"""Errors of the parts whose text is meant for the user: module, class, exit code."""


def _usage_line(error: click.UsageError) -> str:
    text = " ".join(error.format_message().split())
    command = error.ctx.command_path if error.ctx is not None else "taskrunner"
    return text if "see: " in text or "did you mean" in text.lower() else f"{text.rstrip('.')}; see: {command} --help"


def _fail(text: str, code: int) -> int:
    line = " ".join(text.split())
    click.echo(f"{click.style('error:', fg='red')} {line}", err=True, color=wants_colours())
    return code


if __name__ == "__main__":
    sys.exit(main())
