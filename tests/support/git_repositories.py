"""Git repositories for tests, made with the git of this machine and none of its configuration."""

import hashlib
import os
import subprocess
from pathlib import Path

GIT_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "User",
    "GIT_AUTHOR_EMAIL": "user@example.org",
    "GIT_COMMITTER_NAME": "User",
    "GIT_COMMITTER_EMAIL": "user@example.org",
    "LC_ALL": "C",
}


def git(folder: Path, *args: str, check: bool = True) -> str:
    """Run git as its user would and return what it printed."""
    done = subprocess.run(
        ["git", *args], cwd=folder, env=GIT_ENV, check=False, capture_output=True, text=True, errors="replace"
    )
    if check and done.returncode != 0:
        raise AssertionError(f"git {args}: {done.stderr}")
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """Make a repository with one commit, a second branch, and ignored files."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "README").write_text("hello\n")
    (folder / ".gitignore").write_text("*.ignored\n")
    (folder / "src").mkdir()
    (folder / "src/app.py").write_text("print('one')\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "first")
    git(folder, "branch", "other")
    return folder


def make_dirty(folder: Path) -> None:
    """Leave the user's checkout as people leave theirs: staged, unstaged, untracked and ignored changes."""
    (folder / "README").write_text("hello, half done\n")
    (folder / "src/app.py").write_text("print('staged')\n")
    git(folder, "add", "src/app.py")
    (folder / "notes.txt").write_text("mine\n")
    (folder / "secret.ignored").write_text("mine\n")


def snapshot(folder: Path) -> dict[str, str]:
    """Return every file below ``folder`` with its content's hash; objects are left out (they are only ever added)."""
    found: dict[str, str] = {}
    for current, folders, files in os.walk(folder):
        folders.sort()
        for name in [*folders, *files]:
            path = Path(current, name)
            key = str(path.relative_to(folder))
            if "/objects/" in f"/{key}/":
                continue
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[key] = "folder"
    return found


def files_of(repository: Path, revision: str) -> dict[str, str]:
    """Return the paths of a commit and what they hold."""
    names = git(repository, "ls-tree", "-r", "-z", "--name-only", revision).split("\0")
    return {name: git(repository, "show", f"{revision}:{name}") for name in names if name}
