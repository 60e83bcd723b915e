"""Workspaces on a repository by URL, and where their results go."""

import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from activities import git_results, pushes
from activities.backends.contract import SavedChange, WorkspaceSpec
from activities.backends.host import HostBackend
from activities.errors import ResultNotSaved
from messages.names import result_branch
from messages.statuses import BackendKind, Readiness
from tests.support.callback_api import CallbackApi
from tests.support.git_remotes import PASSWORD, GitServer, commit, credential_helper, make_remote, plain_environment
from tests.support.git_repositories import files_of, git, make_dirty, make_repository, snapshot
from tests.support.hosts import BACKENDS, make_spec, make_task


class Place:
    """A user's repository, the remote that it is pushed to, and a backend that reaches that with credentials."""

    def __init__(self, folder: Path, server: GitServer, kind: BackendKind) -> None:
        self.folder = folder
        self.repository = make_repository(folder / "repository")
        self.bare = make_remote(self.repository, server.root / "app.git")
        self.server = server
        self.url = f"{server.url}/app.git"
        self.kind = kind
        server.password = PASSWORD
        self.environ = plain_environment(folder / "user", **credential_helper(PASSWORD))
        self.backend: HostBackend = BACKENDS[kind](folder / "home", environ=self.environ, stop_grace_seconds=0.5)

    async def begin(self, api_url: str = "http://127.0.0.1:9", **options: object) -> WorkspaceSpec:
        """Bring up a workspace of a new task."""
        task = make_task(self.kind, url=self.url, **options)
        spec = make_spec(task, await self.backend.check(task), api_url=api_url)
        await self.backend.provision(spec)
        return spec

    async def end(self, spec: WorkspaceSpec) -> SavedChange | None:
        """Save what changed, and take the workspace down."""
        saved = await self.backend.save_result(spec.compute, spec.base_commit)
        again = await self.backend.save_result(spec.compute, spec.base_commit)
        assert again == saved  # a release may run twice
        await self.backend.destroy(spec.compute)
        return saved

    def checkout(self, spec: WorkspaceSpec) -> Path:
        return self.folder / "home/workspaces" / spec.compute.name / "checkout"

    @property
    def mirror(self) -> Path:
        (found,) = (self.folder / "home/repositories").glob("*/mirror.git")
        return found

    def own_branches(self) -> list[str]:
        """Return the branches in the mirror that are not the remote's."""
        return git(self.mirror, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()

    def fetched(self, saved: SavedChange, branch: str) -> dict[str, str]:
        """Return the files of the branch after a clone of the same repository took the bundle."""
        assert saved.bundle is not None
        (self.folder / "bundle").write_bytes(saved.bundle)
        git(self.folder, "clone", "--quiet", str(self.bare), "clone")
        git(self.folder / "clone", "fetch", "--quiet", str(self.folder / "bundle"), f"{branch}:{branch}")
        return files_of(self.folder / "clone", branch)


@pytest.fixture(params=[BackendKind.WORKTREE, BackendKind.LOCAL])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    (tmp_path / "remotes").mkdir()
    with GitServer(tmp_path / "remotes").serving() as server:
        place = Place(tmp_path, server, request.param)
        yield place
        for compute in await place.backend.list_owned():
            await place.backend.destroy(compute)


async def test_a_change_is_kept_as_a_bundle_that_a_clone_can_take(place: Place) -> None:
    """S44: thin, and the mirror keeps nothing of it."""
    make_dirty(place.repository)
    other = commit_on(place, "large.bin", "x" * 100_000)
    before, remote = snapshot(place.repository), snapshot(place.bare)
    spec = await place.begin()
    checkout = place.checkout(spec)
    assert git(checkout, "rev-parse", "HEAD") == spec.base_commit == other
    assert git(checkout, "remote", "get-url", "origin") == place.url
    assert git(checkout, "rev-parse", "origin/main", "origin/HEAD", "origin/other").split()[:2] == [other, other]
    (checkout / "new.txt").write_text("new\n")
    saved = await place.end(spec)
    assert saved is not None
    branch = result_branch(spec.compute.task_id)
    assert (saved.result.branch, saved.result.bundle, saved.result.pushed_to) == (branch, True, None)
    assert saved.result.repository_path is None
    assert saved.bundle is not None
    assert len(saved.bundle) < 5_000
    assert place.fetched(saved, branch)["new.txt"] == "new"
    assert place.own_branches() == []
    assert git(place.mirror, "worktree", "list").count("\n") == 0
    assert snapshot(place.repository) == before
    assert snapshot(place.bare) == remote


def commit_on(place: Place, name: str, content: str) -> str:
    """Commit to the remote's main, from another clone than the user's."""
    git(place.folder, "clone", "--quiet", str(place.bare), "colleague")
    made = commit(place.folder / "colleague", name, content)
    git(place.folder / "colleague", "push", "--quiet", "origin", "main")
    return made


async def test_tasks_that_share_a_mirror_keep_only_what_is_theirs(place: Place) -> None:
    """S44"""
    specs = [await place.begin()]
    git(place.mirror, "update-ref", "refs/heads/taskrunner/t-other", str(specs[0].base_commit))
    specs.append(await place.begin())
    assert "taskrunner" not in git(place.checkout(specs[1]), "branch", "--remotes")
    for spec in specs:
        commit(place.checkout(spec), "own.txt", spec.compute.task_id)
    for spec in specs:
        saved = await place.end(spec)
        assert saved is not None
        assert saved.bundle is not None
        (place.folder / "bundle").write_bytes(saved.bundle)
        heads = [line.split()[1] for line in git(place.bare, "bundle", "list-heads", "../../bundle").splitlines()]
        own = f"refs/heads/{result_branch(spec.compute.task_id)}"
        # On local the agent's own branches come along; it has committed to main.
        assert set(heads) - {"refs/heads/main"} == {own}
        assert place.kind is BackendKind.LOCAL or heads == [own]


async def test_no_change_leaves_nothing(place: Place) -> None:
    """S44"""
    spec = await place.begin(push=True)
    assert await place.end(spec) is None
    assert place.own_branches() == []
    assert git(place.bare, "branch", "--list", "taskrunner/*") == ""


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_what_no_agent_is_to_know_does_not_reach_it(place: Place) -> None:
    """S37: the credentials are the worker's."""
    spec = await place.begin()
    agent = await place.backend.process_to_watch(spec.compute)
    assert agent is not None
    environ = environment_of(agent.pid)
    assert b"GIT_CONFIG" not in environ
    assert PASSWORD.encode() not in environ
    told: list[Path] = []
    for path in (place.folder / "home").rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # the agent lives, and writes its own anew
            told += [path] * (PASSWORD.encode() in path.read_bytes())
    assert told == []


@pytest.fixture
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


async def test_with_a_setup_the_checkout_is_the_same(place: Place, api: CallbackApi) -> None:
    """With readiness ``callback``, an agent on ``local`` makes it by itself."""
    spec = await place.begin(api_url=api.url, setup=("git status -sb > ../status",), ref="other")
    assert spec.template.effective_readiness is Readiness.CALLBACK
    api.wait_for(lambda: api.count("ready"))
    checkout = place.checkout(spec)
    assert git(checkout, "rev-parse", "HEAD") == git(place.bare, "rev-parse", "other")
    assert git(checkout, "remote", "get-url", "origin") == place.url
    status = (checkout.parent / "status").read_text()
    assert status.startswith("## other...origin/other" if place.kind is BackendKind.LOCAL else "## taskrunner/")


async def test_a_result_is_pushed_where_the_template_says_so(place: Place) -> None:
    """S44: under a name with a number where something else has the plain one."""
    spec = await place.begin(push=True)
    branch = result_branch(spec.compute.task_id)
    git(place.bare, "branch", branch, "other~0")
    (place.checkout(spec) / "new.txt").write_text("new\n")
    git(place.bare, "update-ref", f"refs/heads/{branch}", git(place.bare, "commit-tree", "main^{tree}", "-m", "other"))
    taken = git(place.bare, "rev-parse", branch)
    saved = await place.end(spec)
    assert saved is not None
    assert (saved.result.branch, saved.result.pushed_to, saved.result.bundle) == (f"{branch}-2", place.url, False)
    assert saved.bundle is None
    assert git(place.bare, "rev-parse", branch) == taken
    assert git(place.bare, "rev-parse", f"{branch}-2") == saved.result.commit
    assert files_of(place.bare, f"{branch}-2")["new.txt"] == "new"
    assert git(place.bare, "branch", "--list", "taskrunner/*").count("taskrunner/") == 2
    assert place.own_branches() == []


@pytest.mark.parametrize("why", ["hook", "password", "away"])
async def test_a_result_that_cannot_be_pushed_is_kept_as_a_bundle_that_says_why(
    place: Place, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S44, S37"""
    monkeypatch.setattr(pushes, "PAUSES", (0.01,))
    spec = await place.begin(push=True)
    if why == "hook":
        hook = place.bare / "hooks/pre-receive"
        hook.write_text("#!/bin/sh\necho 'only on Mondays' >&2\nexit 1\n")
        hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    elif why == "password":
        place.server.password = "changed"
    else:
        place.server.broken = True
    (place.checkout(spec) / "new.txt").write_text("new\n")
    saved = await place.end(spec)
    assert saved is not None
    said = {"hook": "pre-receive hook declined: only on Mondays", "password": "does not let us in", "away": "500"}[why]
    assert saved.result.push_error is not None
    assert said in saved.result.push_error
    assert PASSWORD not in saved.result.push_error
    assert (saved.result.pushed_to, saved.result.bundle) == (None, True)
    assert place.fetched(saved, saved.result.branch)["new.txt"] == "new"
    assert place.own_branches() == []


async def test_a_result_that_is_neither_pushed_nor_small_enough_keeps_its_workspace(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S44"""
    monkeypatch.setattr(git_results, "MAX_BUNDLE_BYTES", 10)
    spec = await place.begin(push=True)
    (place.checkout(spec) / "new.txt").write_text("new\n")
    place.server.password = "changed"
    with pytest.raises(ResultNotSaved, match=r"does not let us in.*; what the agent changed is larger than"):
        await place.backend.save_result(spec.compute, spec.base_commit)
    assert (place.checkout(spec) / "new.txt").exists()


async def test_what_a_checkout_lacks_is_said(place: Place) -> None:
    git(place.folder, "clone", "--quiet", str(place.bare), "special")
    special = place.folder / "special"
    (special / ".gitmodules").write_text('[submodule "lib"]\n\tpath = lib\n\turl = ../lib\n')
    (special / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    git(special, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
    git(special, "add", ".gitmodules", ".gitattributes")
    git(special, "commit", "--quiet", "-m", "special")
    git(special, "push", "--quiet", "origin", "HEAD:special")
    warned: list[str] = []

    async def warn(text: str) -> None:
        warned.append(text)

    for ref in ("main", "special"):
        task = make_task(place.kind, url=place.url, ref=ref)
        spec = replace(make_spec(task, await place.backend.check(task)), warn=warn)
        await place.backend.provision(spec)
        assert await place.end(spec) is None
    assert [text.partition(" are left ")[0] for text in warned] == ["submodules", "files of Git LFS"]
    assert all('setup: ["git ' in text for text in warned)
