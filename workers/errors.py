"""What the assembling of processes raises."""


class StackError(Exception):
    """A part of the stack cannot be started or reached; the text is one line that says which, why and what to do."""
