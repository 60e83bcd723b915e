"""What the command line can fail with, and the exit code of each.

::

    CliError          1: the task failed, or something that the user cannot have known
      Refused         1: the service knows no such thing, or its state does not allow what was asked
      UsageError      2: the request or the environment is wrong; nothing was done
      Unreachable     3: no service answers, or it cannot be started
"""

INTERRUPTED = 130


class CliError(Exception):
    """Ends the program with one line on stderr: what happened, to what, and what to do."""

    exit_code = 1


class Refused(CliError):
    """The service knows no such thing, or the state that it is in does not allow what was asked."""


class UsageError(CliError):
    """The request, or the environment that it is made in, is wrong."""

    exit_code = 2


class Unreachable(CliError):
    """The service does not answer, refuses us, or cannot be started."""

    exit_code = 3
