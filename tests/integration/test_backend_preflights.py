"""What the preflight of ``local`` and ``worktree`` says of repositories, refs and permissions."""

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from activities.backends.host import HostBackend
from activities.errors import BackendUnusable, InvalidTask
from messages.statuses import BackendKind
from tests.support.git_repositories import git, make_repository, snapshot
from tests.support.hosts import BACKENDS, make_task

pytest_plugins = ["tests.support.host_backends"]


@pytest.fixture
def other_user() -> str:
    """Who is kept out of a closed folder: ourselves, but for root."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Have the rights of ``user`` (and so have the programs that are started) where we are root."""
    if os.geteuid() != 0:
        yield
        return
    account = pwd.getpwnam(user)
    before = os.getresuid(), os.getresgid(), os.getgroups()
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, 0)
    os.setresuid(account.pw_uid, account.pw_uid, 0)
    try:
        yield
    finally:
        os.setresuid(*before[0])
        os.setresgid(*before[1])
        os.setgroups(before[2])


async def test_a_worktree_needs_git_and_a_repository(kind: BackendKind, tmp_path: Path, home: Path) -> None:
    backend = BACKENDS[kind](home, environ={"PATH": "/nonexistent"})
    with pytest.raises(BackendUnusable, match="git"):
        await backend.check(make_task(kind, make_repository(tmp_path / "another")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("missing", None), "not a folder"),
        (("plain", None), "git init"),
        (("unborn", None), "--allow-empty"),
        (("unborn", "main"), "names no commit"),
        (("good", "nothing-of-that-name"), "branch --all"),
        (("good", "HEAD:README"), "names no commit"),
    ],
)
async def test_preflight_says_what_to_do_about_the_repository(
    backend: HostBackend, kind: BackendKind, tmp_path: Path, given: tuple[str, str | None], expected: str
) -> None:
    make, ref = given
    path = tmp_path / "given"
    if make == "good":
        make_repository(path)
    elif make != "missing":
        path.mkdir()
        if make == "unborn":
            git(path, "init", "--quiet")
    with pytest.raises(InvalidTask, match=expected):
        await backend.check(make_task(kind, path, ref=ref))


async def test_preflight_says_of_a_path_that_cannot_be_looked_at_what_to_do(
    backend: HostBackend, kind: BackendKind, tmp_path: Path
) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for path, expected in ((tmp_path / ("x" * 256), "File name too long"), (circle, "Too many levels")):
        with pytest.raises(InvalidTask, match=f"{expected}.*; give the path"):
            await backend.check(make_task(kind, path))


@pytest.mark.parametrize("closed", [".", "repository", "repository/.git"])
async def test_preflight_says_who_has_to_be_let_in(
    backend: HostBackend, kind: BackendKind, closed: str, other_user: str
) -> None:
    """A folder of somebody else, above the repository, the repository's own, or what is in it."""
    with TemporaryDirectory(prefix="tr-closed-") as folder:
        repository = make_repository(Path(folder) / "repository")
        for path in (Path(folder), repository, repository / ".git"):
            path.chmod(0o755)
        (Path(folder) / closed).chmod(0o700 if other_user == "nobody" else 0)
        try:
            with acting_as(other_user), pytest.raises(InvalidTask, match=rf"runs as user {other_user};"):
                await backend.check(make_task(kind, repository))
        finally:
            (Path(folder) / closed).chmod(0o700)


async def test_preflight_resolves_refs_of_every_kind_and_touches_nothing(
    backend: HostBackend, kind: BackendKind, repository: Path
) -> None:
    git(repository, "tag", "-a", "v1", "-m", "v1")
    before = snapshot(repository)
    head = git(repository, "rev-parse", "HEAD")
    for ref in (None, "other", "v1", "refs/heads/main", head[:10]):
        assert await backend.check(make_task(kind, repository, ref=ref)) == head
    assert await backend.check(make_task(kind, repository / "src")) == head
    assert snapshot(repository) == before
