"""Local checks of ``--repo`` and ``--ref``: a mistake is told before anything is started or submitted."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cli.errors import Unreachable, UsageError

_REMOTE = re.compile(r"[^/]*:")


def is_url(text: str) -> bool:
    """Tell whether ``--repo`` names a repository elsewhere (``https://…``, ``git@host:…``).

    As for git: a colon before the first slash says so, unless there is such a file.
    """
    return _REMOTE.match(text) is not None and not Path(text).exists()


def find_repository(folder: Path) -> Path | None:
    """Return the top folder of the repository that ``folder`` is in, of a bare one its own folder; None outside of any.

    Inside a ``.git`` it is the folder around that. Raises ``UsageError`` where git refuses the repository.
    """
    if (top := _ask(folder, "--show-toplevel")) is not None:
        return top
    done = _git(folder, "rev-parse", "--git-common-dir")
    if done.returncode != 0:
        _refuse_foreign(folder, done.stderr)
        return None
    common = (folder / done.stdout.rstrip("\n")).resolve()
    return (_ask(common.parent, "--show-toplevel") if common.name == ".git" else None) or common


def find_with_commit(folder: Path) -> Path | None:
    """Return what the two others would where all is as it should be, in one call of git; None where they have to look.

    That is the top folder of the checkout around ``folder``, of a repository that has a commit.
    """
    done = _git(folder, "rev-parse", "--show-toplevel", "HEAD^{commit}")
    return Path(done.stdout.rstrip("\n").rpartition("\n")[0]) if done.returncode == 0 else None


def check_repository(path: Path, ref: str | None) -> Path:
    """Return the absolute top folder of the repository at ``path`` (of a bare one: itself).

    Raises ``UsageError`` where it is none, has no commit yet, or does not know ``ref``.
    """
    if not path.is_dir():
        raise UsageError(f"--repo {path}: {'not a folder' if path.exists() else 'no such folder'}")
    done = _git(path, "rev-parse", "--absolute-git-dir")
    if done.returncode != 0:
        _refuse_foreign(path, done.stderr)
        raise UsageError(f"{path} is not a git repository; name one with --repo, or use --backend local")
    top = find_repository(path) or Path(done.stdout.rstrip("\n"))
    if _git(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").returncode != 0 and ref is None:
        branches = _git(top, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes").stdout.split()
        if branches:
            raise UsageError(
                f"{top} has no commit at HEAD, which names a branch that is not there; name another one:"
                f" --ref {branches[0]}"
            )
        raise UsageError(f"{top} has no commit yet; commit something first, or use --backend local")
    if ref is not None and _git(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").returncode != 0:
        raise UsageError(f"{top} has no commit, branch or tag {ref!r}; see: git -C {top} branch -a")
    return top


def _ask(folder: Path, question: str) -> Path | None:
    done = _git(folder, "rev-parse", question)
    return Path(done.stdout.rstrip("\n")) if done.returncode == 0 else None


def _refuse_foreign(path: Path, said: str) -> None:
    """Raise ``UsageError`` where git has said that the repository is another user's."""
    if "dubious ownership" in said:
        raise UsageError(f"{path} belongs to another user; run: git config --global --add safe.directory {path}")


def _git(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return run_git(folder, *args, env={**env, "LC_ALL": "C"})


def run_git(folder: Path, *args: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder`` and return what it said, however it ended; raise ``Unreachable`` where there is none."""
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *args],
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as e:
        from cli.doctor.programs import installing

        why = "is not on your PATH" if isinstance(e, FileNotFoundError) else f"cannot be started ({e.strerror})"
        raise Unreachable(f"git {why}; install git 2.34 or newer: {installing('git')}") from e
