"""Registries as earlier releases left them (``tests/releases``)."""

from pathlib import Path
from typing import Any, cast

import psycopg

RELEASES = sorted(folder for folder in (Path(__file__).parents[1] / "releases").iterdir() if folder.name[0].isdigit())


def restore(release: Path, url: str) -> None:
    """Load a release's registry into an empty database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(cast(Any, (release / "registry.sql").read_text()))
