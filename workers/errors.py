"""What the assembling of processes raises."""


class StackError(Exception):
    """A part of the stack cannot be started or reached; the text is one line that says which, why and what to do."""


ASK_THE_DOCTOR = "taskrunner doctor says what is missing"
"""Ends an error's text where it helps, after ``; ``."""
