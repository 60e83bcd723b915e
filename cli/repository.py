"""Local checks of ``--repo`` and ``--ref``: a mistake is told before anything is started or submitted."""

import os
import re
import subprocess
from pathlib import Path

from cli.errors import UsageError

_URL = re.compile(r"^([a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:)")


def is_url(text: str) -> bool:
    """Tell whether ``--repo`` names a repository elsewhere (``https://…``, ``git@host:…``)."""
    return _URL.match(text) is not None


def find_repository(folder: Path) -> Path | None:
    """Return the top folder of the repository that ``folder`` is in, or None."""
    done = _git(folder, "rev-parse", "--show-toplevel")
    return Path(done.stdout.rstrip("\n")) if done.returncode == 0 else None


def check_repository(path: Path, ref: str | None) -> Path:
    """Return the absolute top folder of the repository at ``path`` (of a bare one: itself).

    Raises ``UsageError`` where it is none, has no commit yet, or does not know ``ref``.
    """
    if not path.is_dir():
        raise UsageError(f"--repo {path}: {'not a folder' if path.exists() else 'no such folder'}")
    done = _git(path, "rev-parse", "--absolute-git-dir")
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        if words and "dubious ownership" in words[0]:
            raise UsageError(f"{path} belongs to another user; run: git config --global --add safe.directory {path}")
        raise UsageError(f"{path} is not a git repository; name one with --repo, or use --backend local")
    top = find_repository(path) or Path(done.stdout.rstrip("\n"))
    if _git(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").returncode != 0 and ref is None:
        raise UsageError(f"{top} has no commit yet; commit something first, or use --backend local")
    if ref is not None and _git(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").returncode != 0:
        raise UsageError(f"{top} has no commit, branch or tag {ref!r}; see: git -C {top} branch -a")
    return top


def _git(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *args],
            env={**env, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as e:
        raise UsageError(f"git cannot be started ({e.strerror}); install git") from e
