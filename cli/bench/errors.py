"""What keeps a figure from being measured."""


class NotMeasured(Exception):
    """What the figure needs is not here; the text says what, and how to have it."""
