"""Commands that only read."""

import sys

import click

from cli.terminal import discard


class ReadingCommand(click.Command):
    """A command that changes nothing, so that a reader of its output who has had enough is no error.

    Of the other commands it is one: who reads no more does not know what they did.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Carry it out; end quietly, with exit code 0, where nobody reads any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard(sys.stdout)
            return 0
