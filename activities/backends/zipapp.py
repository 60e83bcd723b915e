"""The workspace agent's file on this host."""

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from agent.build import build_zipapp


def agent_zipapp(home: Path) -> Path:
    """Return ``<home>/agent-<hash>.pyz``, made if it is not there.

    Its name is its content's: a running agent reads its modules from the file it was started from, so a file that is
    there is never replaced.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".agent-", dir=home) as folder:
        built = Path(folder, "agent.pyz")
        build_zipapp(built)
        target = home / f"agent-{hashlib.sha256(built.read_bytes()).hexdigest()[:16]}.pyz"
        if not target.exists():
            os.replace(built, target)  # noqa: PTH105 (a rename within one folder, whole or not at all)
    return target
