"""A host's mirror of a remote: fetched once for all, whoever dies meanwhile."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activities import mirrors, processes
from activities.errors import InvalidTask, RepositoryUnreachable
from activities.files import exclusive
from activities.git import Git
from activities.mirrors import Mirror
from activities.processes import ProcessId
from activities.remotes import Remote
from tests.support.git_remotes import GitServer, commit, make_remote, plain_environment, stand_in_ssh
from tests.support.git_repositories import GIT_ENV, git, make_repository


class Place:
    """A repository that is pushed to a served remote, and this host's mirror of that."""

    def __init__(self, folder: Path, server: GitServer) -> None:
        self.repository = make_repository(folder / "repository")
        self.bare = make_remote(self.repository, server.root / "app.git")
        self.server = server
        self.home = folder / "home"
        self.environ = plain_environment(folder / "user", **stand_in_ssh(folder))
        self.url = f"{server.url}/app.git"
        self.told: list[str] = []
        self.was_told = asyncio.Event()

    def mirror(self, url: str | None = None) -> Mirror:
        return Mirror(self.home, Remote(url or self.url, self.environ), Git(self.home, GIT_ENV))

    async def tell(self, text: str) -> None:
        self.told.append(text)
        self.was_told.set()

    async def provide(self, wanted: str, url: str | None = None) -> Mirror:
        mirror = self.mirror(url)
        await mirror.provide(wanted, self.tell)
        return mirror

    def publish(self, name: str, content: str | bytes = "new\n", branch: str = "main") -> str:
        made = commit(self.repository, name, content)
        git(self.repository, "push", "--quiet", "--force", str(self.bare), f"HEAD:refs/heads/{branch}")
        return made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "remotes").mkdir()
    with GitServer(tmp_path / "remotes").serving() as server:
        yield Place(tmp_path, server)


def branches(mirror: Mirror) -> list[str]:
    return git(mirror.path, "for-each-ref", "--format=%(refname)").split()


@pytest.mark.parametrize("transport", ["http", "file", "ssh"])
async def test_a_mirror_has_what_the_remote_has_and_is_fetched_only_for_what_is_new(
    place: Place, transport: str
) -> None:
    urls = {"http": place.url, "file": f"file://{place.bare}", "ssh": f"ssh://git@example.org{place.bare}"}
    first = git(place.bare, "rev-parse", "main")
    mirror = await place.provide(first, urls[transport])
    origin = "refs/remotes/origin/"
    assert branches(mirror) == [f"{origin}{name}" for name in ("HEAD", "main", "other")]
    assert git(mirror.path, "symbolic-ref", f"{origin}HEAD") == f"{origin}main"
    assert git(mirror.path, "config", "remote.origin.url") == urls[transport]
    asked = len(place.server.requests)
    await place.provide(first, urls[transport])
    assert len(place.server.requests) == asked  # nothing of it needs the network any more
    second = place.publish("second.txt")
    git(place.bare, "branch", "--quiet", "-D", "other")
    git(place.bare, "tag", "v1", second)
    git(mirror.path, "update-ref", "refs/heads/taskrunner/t-1", first)
    await place.provide(second, urls[transport])
    assert branches(mirror) == ["refs/heads/taskrunner/t-1", f"{origin}HEAD", f"{origin}main", "refs/tags/v1"]
    assert place.told[0].startswith("fetching ")


async def test_two_tasks_at_once_fetch_once(place: Place) -> None:
    wanted = git(place.bare, "rev-parse", "main")
    await asyncio.gather(*(place.provide(wanted) for _ in range(4)))
    assert place.server.fetches == 1
    asked = [request for request in place.server.requests if request.startswith("GET ")]
    assert len(asked) == 2  # for the objects, and for the default branch's name


async def test_a_commit_that_no_branch_leads_to_is_fetched_by_itself(place: Place) -> None:
    lost = place.publish("lost.txt")
    git(place.repository, "reset", "--quiet", "--hard", "HEAD~1")
    place.publish("kept.txt")  # by force
    mirror = await place.provide(lost)
    assert git(mirror.path, "cat-file", "-t", lost) == "commit"
    with pytest.raises(InvalidTask, match=f"has no commit {'1' * 40}"):
        await place.provide("1" * 40)


async def test_a_branch_may_become_a_folder_of_branches(place: Place) -> None:
    await place.provide(git(place.bare, "rev-parse", "main"))
    git(place.bare, "branch", "--quiet", "-D", "other")
    nested = place.publish("nested.txt", branch="other/nested")
    mirror = await place.provide(nested)
    assert "refs/remotes/origin/other/nested" in branches(mirror)


async def started_fetch(place: Place, wanted: str) -> tuple["asyncio.Task[Any]", ProcessId]:
    """Begin a fetch whose answer stops half-way; return it and the git that it runs."""
    place.server.hold = threading.Event()
    place.server.holding.clear()
    found: asyncio.Future[ProcessId] = asyncio.get_running_loop().create_future()
    start = processes.start

    def noted(*args: Any, **kwargs: Any) -> ProcessId:
        process = start(*args, **kwargs)
        if not found.done():
            found.set_result(process)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "start", noted)
        task = asyncio.create_task(place.provide(wanted))
        process = await found
    assert await asyncio.to_thread(place.server.holding.wait, 10)
    return task, process


def kill_group(process: ProcessId) -> None:
    os.killpg(process.pid, signal.SIGKILL)


async def test_a_fetch_that_is_killed_is_made_again(place: Place) -> None:
    """S21: git dies at once, and leaves a lock and half a pack, which the next fetch removes."""
    first = git(place.bare, "rev-parse", "main")
    mirror = await place.provide(first)
    wanted = place.publish("large.bin", os.urandom(3_000_000))
    task, process = await started_fetch(place, wanted)
    kill_group(process)
    with pytest.raises(RepositoryUnreachable):
        await task
    place.server.hold.set()
    assert not await mirror.has(wanted)
    left = mirror.path / "objects/pack/tmp_pack_left"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    for name in ("refs/remotes/origin/main.lock", "packed-refs.lock"):
        (mirror.path / name).touch()
    await place.provide(wanted)
    assert await mirror.has(wanted)
    assert not left.exists()


async def test_a_fetch_outlives_its_worker_and_the_next_try_waits_for_it(place: Place) -> None:
    """S21: what is half fetched goes on, and is not asked for a second time."""
    wanted = place.publish("large.bin", os.urandom(3_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirrors, "_is_unwanted", lambda: False)  # as where a worker is stopped
        task, process = await started_fetch(place, wanted)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert processes.is_alive(process)
    place.told.clear()
    place.was_told.clear()
    again = asyncio.create_task(place.provide(wanted))
    await asyncio.wait_for(place.was_told.wait(), 10)  # it tells how far the fetch is that it waits for
    assert "fetching 127.0.0.1" in place.told[0]
    assert "objects" in place.told[0]
    place.server.hold.set()
    mirror = await again
    assert await mirror.has(wanted)
    assert place.server.fetches == 1


async def test_a_fetch_that_nobody_wants_any_more_ends(place: Place) -> None:
    """S26"""
    task, process = await started_fetch(place, git(place.bare, "rev-parse", "main"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not processes.is_alive(process)
    async with asyncio.timeout(5), exclusive(place.mirror().path.parent / "lock", create=False) as lock:
        assert lock is not None  # nothing that it started holds it either


async def test_a_commit_without_its_files_counts_as_missing(place: Place) -> None:
    """S21: what a git leaves that is killed while it unpacks."""
    wanted = git(place.bare, "rev-parse", "main")
    mirror = await place.provide(wanted)
    tree = git(mirror.path, "rev-parse", f"{wanted}^{{tree}}")
    for ref in branches(mirror):
        git(mirror.path, "update-ref", "--no-deref", "-d", ref)
    (mirror.path / "objects" / tree[:2] / tree[2:]).unlink()
    assert not await mirror.has(wanted)
    await place.provide(wanted)
    assert await mirror.has(wanted)


async def test_a_mirror_that_was_never_finished_or_is_broken_is_made_anew(place: Place) -> None:
    """S21"""
    wanted = git(place.bare, "rev-parse", "main")
    folder = place.mirror().path.parent
    (folder / "mirror.git.new").mkdir(parents=True)
    mirror = await place.provide(wanted)
    (mirror.path / "HEAD").write_text("")
    await place.provide(wanted)
    assert await mirror.has(wanted)
    assert len(list(folder.glob("broken-*"))) == 1


async def test_what_an_agent_wrote_into_the_mirrors_configuration_leads_no_credentials_away(
    place: Place, tmp_path: Path
) -> None:
    """S37: worktrees share the configuration of their repository."""
    mirror = await place.provide(git(place.bare, "rev-parse", "main"))
    script = f"!f() {{ cat > {tmp_path}/stolen; }}; f"
    for key, value in {
        "credential.helper": script,
        "url.file:///elsewhere/.insteadOf": place.server.url,
        "remote.origin.url": "file:///elsewhere",
        "core.sshCommand": "false",
        "http.proxy": "http://127.0.0.1:9",
        "user.name": "An Agent",
    }.items():
        git(mirror.path, "config", key, value)
    place.server.password = "secret"
    wanted = place.publish("second.txt")
    with pytest.raises(InvalidTask, match="does not let us in"):
        await place.provide(wanted)
    assert not (tmp_path / "stolen").exists()
    assert git(mirror.path, "config", "user.name") == "An Agent"
    assert git(mirror.path, "config", "remote.origin.url") == place.url
