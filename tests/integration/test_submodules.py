"""Nothing of what an agent changes inside a submodule is saved: that is said, and only where there is something."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from activities.backends.host import HostBackend
from activities.git import Git
from activities.git_results import Place
from activities.git_submodules import left_in_submodules
from activities.processes import clean_environment
from messages.statuses import BackendKind
from tests.support.git_repositories import git, make_repository
from tests.support.hosts import make_spec, make_task

pytest_plugins = ["tests.support.host_backends"]

FILL = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init")
EDITS = "submodule odd ü/sm: uncommitted changes"
COMMIT = "submodule odd ü/sm: 1 commit that its remote may not have"
WAY = "; only what is pushed to a submodule's own remote stays"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The repository that is the submodule of the other one."""
    return make_repository(tmp_path / "library")


@pytest.fixture
def repository(tmp_path: Path, library: Path) -> Path:
    repository = make_repository(tmp_path / "repository")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "odd ü/sm")
    git(repository, "commit", "--quiet", "-m", "with a submodule")
    return repository


@dataclass
class Checkout:
    """A clone of the repository, with its submodule in it, in which an agent has worked."""

    folder: Path
    base: str

    @property
    def submodule(self) -> Path:
        return self.folder / "odd ü/sm"

    async def left(self) -> list[str]:
        commit = git(self.folder, "rev-parse", "HEAD")
        git_dir = self.folder / ".git"
        tool = Git(cwd=git_dir, env=clean_environment(os.environ)).at(GIT_DIR=git_dir)
        place = Place(git=tool, git_dir=git_dir, checkout=self.folder, scratch=self.folder.parent)
        return await left_in_submodules(place, base=self.base, commit=commit)

    def commit(self, folder: Path, *options: str) -> None:
        git(folder, "commit", "--quiet", "--allow-empty", "-m", "the agent's", *options)


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Checkout:
    git(tmp_path, "clone", "--quiet", str(repository), "checkout")
    return Checkout(tmp_path / "checkout", git(repository, "rev-parse", "HEAD"))


async def test_what_is_as_it_was_or_pushed_or_not_there_is_not_spoken_of(checkout: Checkout, library: Path) -> None:
    assert await checkout.left() == []  # it is empty, as every checkout begins
    git(checkout.folder, *FILL)
    assert await checkout.left() == []
    checkout.commit(checkout.submodule)
    git(checkout.submodule, "push", "--quiet", "origin", "HEAD:refs/heads/from-the-agent")
    git(checkout.folder, "commit", "--quiet", "-a", "-m", "moved")
    assert await checkout.left() == []
    shutil.rmtree(checkout.submodule)
    assert await checkout.left() == []
    checkout.submodule.symlink_to(library)
    assert await checkout.left() == []
    git(checkout.folder, "rm", "--quiet", "--cached", "odd ü/sm")
    checkout.submodule.unlink()
    checkout.submodule.mkdir()
    (checkout.submodule / "file").write_text("of the repository itself now\n")
    git(checkout.folder, "add", "--all")
    git(checkout.folder, "commit", "--quiet", "-m", "no submodule any more")
    assert await checkout.left() == []


@pytest.mark.parametrize("change", ["README", "new", "src/app.py"])
async def test_a_file_that_is_not_committed_is_missed(checkout: Checkout, change: str) -> None:
    git(checkout.folder, *FILL)
    (checkout.submodule / change).write_text("changed\n")
    assert await checkout.left() == [EDITS + WAY]


async def test_a_commit_on_any_branch_is_missed_and_a_reference_to_it_leads_nowhere(checkout: Checkout) -> None:
    git(checkout.folder, *FILL)
    git(checkout.submodule, "switch", "--quiet", "-c", "work")
    checkout.commit(checkout.submodule)
    assert await checkout.left() == [COMMIT + WAY]
    git(checkout.submodule, "switch", "--quiet", "--detach", "origin/main")
    assert await checkout.left() == [COMMIT + WAY]
    git(checkout.submodule, "switch", "--quiet", "work")
    git(checkout.folder, "commit", "--quiet", "-a", "-m", "moved")
    (checkout.submodule / "new").write_text("new\n")
    assert await checkout.left() == [
        EDITS + " and 1 commit that its remote may not have, one of which the result refers to" + WAY
    ]


async def test_in_a_copy_without_configuration_it_is_found_all_the_same(checkout: Checkout) -> None:
    """As what is fetched from a container is: without any file that leads somewhere else."""
    git(checkout.folder, *FILL)
    (checkout.submodule / ".git").unlink()
    (checkout.folder / ".git/modules/odd ü/sm/config").unlink()
    assert await checkout.left() == []
    (checkout.submodule / "new").write_text("new\n")
    assert await checkout.left() == [EDITS + WAY]
    shutil.rmtree(checkout.folder / ".git/modules")
    assert await checkout.left() == [
        "submodule odd ü/sm: whether its files were changed cannot be told, as its git folder is not usable" + WAY
    ]


@pytest.mark.parametrize("saves", [False, True])
async def test_the_release_says_it_once_whether_or_not_there_is_a_result(
    backend: HostBackend, kind: BackendKind, home: Path, repository: Path, saves: bool
) -> None:
    """S44: on both backends; of a worktree, the submodule's own folder is in that of the worktree."""
    spec = make_spec(make_task(kind, repository), git(repository, "rev-parse", "HEAD"))
    await backend.provision(spec)
    checkout = home / "workspaces" / spec.compute.name / "checkout"
    git(checkout, *FILL)
    (checkout / "odd ü/sm/new").write_text("new\n")
    if saves:
        (checkout / "new").write_text("new\n")
    told: list[str] = []

    async def tell(text: str) -> None:
        told.append(text)

    assert (await backend.save_result(spec.compute, spec.base_commit, tell) is not None) is saves
    assert told == [EDITS + WAY]
