"""Where things are unless the environment says otherwise; apart from the settings, which take long to load."""

import os
from pathlib import Path

DEFAULT_API_URL = "http://127.0.0.1:8070"
WHERE_TOKENS_ARE = (
    "that of taskrunner dev, or of an api that was given none, is in the file api-token of its TASKRUNNER_HOME"
)
DATABASE_IS_NOT_OURS = "TASKRUNNER_DATABASE_URL is for worker, api and migrate alone"
"""Told where the embedded stack, or its records, are used although the variable is set."""


def token_path(home: Path) -> Path:
    """Return where a home keeps its API token."""
    return home / "api-token"


def default_home() -> Path:
    """Return the folder of the embedded stack's state; raise ``RuntimeError`` for a user without a home folder."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "taskrunner"
