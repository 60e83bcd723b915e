"""What an agent changed is kept, however its task ends; the user's own checkout is never touched."""

from pathlib import Path

import pytest

from messages.statuses import SessionStatus, TaskStatus
from messages.views import TaskView
from tests.support.git_repositories import files_of, git, make_dirty, snapshot
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(90)

HOST = "result-host"
ENDS = {
    "success": ("true", TaskStatus.COMPLETED, SessionStatus.COMPLETED),
    "failure": ("exit 3", TaskStatus.FAILED, SessionStatus.FAILED),
    "timeout": ("sleep 600", TaskStatus.FAILED, SessionStatus.CANCELLED),
    "cancel": ("sleep 600", TaskStatus.CANCELLED, SessionStatus.CANCELLED),
}
CHANGES = """
echo new > added; echo more >> README; rm src/app.py; mkdir deep; ln -s ../added deep/link
git add README; git commit -qm 'half of it'; echo rest >> added; echo said
"""


@pytest.fixture(scope="module")
def worker_env() -> dict[str, str]:
    return {"GIT_CONFIG_GLOBAL": "/dev/null"}


async def carried_out(stack: Stack, repository: Path, kind: str, end: str, work: str) -> TaskView:
    """Run a task that does ``work`` and then ends in the given way."""
    last, status, session = ENDS[end]
    identity = (
        "export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org; export GIT_COMMITTER_NAME=A"
        " GIT_COMMITTER_EMAIL=a@example.org;"
    )
    request = {"timeout": "1s"} if end == "timeout" else {}
    task = await stack.submit(f"{identity}{work}\n{last}", backend=kind, repository=(repository, HOST), **request)
    if end == "cancel":
        await stack.until(task, lambda view: view.session and view.session.output_bytes)
        await stack.cancel(task)
    view = await stack.ended(task)
    assert view.status is status
    assert view.session is not None
    assert view.session.status is session
    assert bool(view.error) == (status is not TaskStatus.COMPLETED)
    assert await stack.output(task) == "said\n"
    return view


@pytest.mark.parametrize("kind", ["worktree", "local"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.usefixtures("worker")
async def test_a_change_survives_the_end_of_its_task(
    stack: Stack, repository: Path, tmp_path: Path, kind: str, end: str
) -> None:
    """S44: commits and what was not committed, on a branch or in a bundle, and as a patch."""
    base = git(repository, "rev-parse", "HEAD")
    make_dirty(repository)
    before = snapshot(repository)
    view = await carried_out(stack, repository, kind, end, CHANGES)
    after = snapshot(repository)
    assert {path for path in after.keys() - before.keys() if "taskrunner" not in path} == set()
    assert {path: after.get(path) for path in before} == before

    result = view.result
    assert result is not None
    assert (result.branch, result.base_commit) == (f"taskrunner/{view.id}", base)
    assert result.files_changed == 4

    branch = result.branch
    if kind == "local":
        assert result.bundle
        bundle = await stack.registry.results.bundle(view.id)
        assert bundle is not None
        (tmp_path / "bundle").write_bytes(bundle)
        branch = "fetched"
        git(repository, "fetch", "-q", str(tmp_path / "bundle"), f"{result.branch}:{branch}")
    assert git(repository, "rev-parse", branch) == result.commit
    files = files_of(repository, branch)
    assert files == {".gitignore": "*.ignored", "README": "hello\nmore", "added": "new\nrest", "deep/link": "../added"}
    assert git(repository, "log", "--format=%s", f"main..{branch}").splitlines()[-1] == "half of it"

    patch = await stack.user.get(f"/api/tasks/{view.id}/diff")
    assert patch.status_code == 200
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    (tmp_path / "patch").write_bytes(patch.content)
    git(clone, "apply", "--index", str(tmp_path / "patch"))
    assert git(clone, "write-tree") == git(repository, "rev-parse", f"{branch}^{{tree}}")


@pytest.mark.parametrize("kind", ["worktree", "local"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.usefixtures("worker")
async def test_no_change_leaves_no_branch(stack: Stack, repository: Path, kind: str, end: str) -> None:
    """S44: and nothing else either; a file that is ignored is no change."""
    before = snapshot(repository)
    view = await carried_out(stack, repository, kind, end, "echo x > y.ignored; echo said")
    assert view.result is None
    assert (await stack.user.get(f"/api/tasks/{view.id}/diff")).status_code == 404
    assert snapshot(repository) == before
