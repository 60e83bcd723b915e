"""The workspace agent's file on this host."""

import hashlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from agent.build import build_zipapp


def agent_zipapp(home: Path) -> Path:
    """Return ``<home>/agent-<hash>-<Python>.pyz``, made if it is not there.

    The hash is its sources': a running agent reads its modules from the file it was started from, so a file that is
    there is never replaced. It starts fastest with this Python, and runs with others.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".agent-", dir=home) as folder:
        sources = hashlib.sha256(build_zipapp(Path(folder, "sources.pyz")).read_bytes()).hexdigest()[:16]
        target = home / f"agent-{sources}-{sys.implementation.cache_tag}.pyz"
        if not target.exists():
            built = build_zipapp(Path(folder, "agent.pyz"), compiled=True)
            os.replace(built, target)  # noqa: PTH105 (a rename within one folder, whole or not at all)
    return target
