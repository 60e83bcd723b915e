"""kill -9 of the worker while a result is saved and pushed: the remote gets one branch a task."""

from pathlib import Path

import pytest

from tests.support.docker import IMAGE
from tests.support.git_remotes import GitServer, make_remote
from tests.support.git_repositories import files_of, git
from tests.support.stack import Stack, unique

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("leaves_no_container")]

HOST = "push-host"


async def test_a_result_is_pushed_once(
    stack: Stack, container_env: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    """S21, S44: also where the same change, saved anew at another time, would be another commit."""
    home, bare = tmp_path / "home", tmp_path / "remotes/app.git"
    make_remote(repository, bare)
    before = git(bare, "for-each-ref", "--format=%(refname:short)").split()
    templates = {
        kind: stack.template(
            backend=kind, push=True, **({"container": {"image": IMAGE}} if kind == "container" else {})
        )
        for kind in ("worktree", "local", "container")
    }
    stops = {unique("t"): (kind, point) for kind in templates for point in ("result kept", "result recorded")}
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", **container_env}
    with GitServer(bare.parent).serving() as server:
        points = {task: point for task, (_, point) in stops.items()}
        async with stack.worker(HOST, home, stops=points, **env) as worker:
            for task, (kind, _) in stops.items():
                request = {"template": templates[kind], "repository": {"url": f"{server.url}/app.git"}}
                await stack.submit("echo made > made-by-agent", id=task, **request)
            await worker.said("^stopped: ", times=len(stops), timeout=60)
            await worker.kill()
        async with stack.worker(HOST, home, stops={}, **env):
            views = [await stack.completed(task, timeout=60) for task in stops]
    after = git(bare, "for-each-ref", "--format=%(refname:short)").split()
    assert sorted(set(after) - set(before)) == sorted(f"taskrunner/{task}" for task in stops)
    for view in views:
        assert view.result is not None
        assert view.result.commit == git(bare, "rev-parse", view.result.branch)
        assert files_of(bare, view.result.branch)["made-by-agent"] == "made"
