"""The checkout that the real workspace agent makes: which commit, once only, and nothing of the machine's own git."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.callback_api import CallbackApi
from tests.support.git_repositories import git

Make = Callable[..., AgentProcess]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits on main, a branch and a tag."""
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "-b", "main")
    for number in (1, 2):
        (path / "file").write_text(f"{number}\n")
        git(path, "add", "-A")
        git(path, "commit", "-m", f"commit {number}")
    git(path, "branch", "feature", "HEAD~1")
    git(path, "tag", "v1", "HEAD~1")
    return path


def test_an_empty_checkout_is_a_repository_with_one_commit(make: Make, api: CallbackApi) -> None:
    agent = make(checkout={"kind": "empty"}).start()
    api.wait_for(lambda: api.count("ready"))
    assert git(agent.checkout, "rev-list", "--count", "HEAD") == "1"
    assert git(agent.checkout, "status", "--porcelain") == ""
    assert git(agent.checkout, "rev-parse", "HEAD") == git(agent.checkout, "rev-parse", "refs/taskrunner/base")
    assert [c.body["step"] for c in api.accepted if c.kind == "boot-log"] == ["checkout", "checkout", "listening"]


@pytest.mark.parametrize(
    ("ref", "commit", "head", "branch"),
    [
        (None, None, "main", "main"),
        (None, "main~1", "main~1", "main"),
        ("feature", None, "feature", "feature"),
        ("feature", "main", "main", "feature"),
        ("v1", None, "v1", "HEAD"),
    ],
)
def test_a_clone_stands_at_the_commit_that_was_asked_for(
    make: Make, repository: Path, *, ref: str | None, commit: str | None, head: str, branch: str
) -> None:
    sha = git(repository, "rev-parse", commit) if commit else None
    agent = make(checkout={"kind": "clone", "url": str(repository), "ref": ref, "commit": sha})
    done = agent.prepare()
    assert (done.returncode, done.stdout, done.stderr[-500:].count("failed")) == (0, "", 0)
    assert git(agent.checkout, "rev-parse", "HEAD") == git(repository, "rev-parse", head)
    assert git(agent.checkout, "rev-parse", "--abbrev-ref", "HEAD") == branch
    if branch != "HEAD":
        assert git(agent.checkout, "rev-parse", "--abbrev-ref", "@{upstream}") == f"origin/{branch}"
    assert git(agent.checkout, "status", "--porcelain") == ""
    assert git(agent.checkout, "rev-parse", "refs/taskrunner/base") == git(agent.checkout, "rev-parse", "HEAD")


def test_serve_does_not_repeat_what_prepare_has_done(make: Make, repository: Path, api: CallbackApi) -> None:
    agent = make(checkout={"kind": "clone", "url": str(repository)})
    assert agent.prepare().returncode == 0
    (agent.checkout / "file").write_text("changed\n")
    agent.start()
    api.wait_for(lambda: api.count("ready"))
    assert (agent.checkout / "file").read_text() == "changed\n"
    assert [c.body["step"] for c in api.accepted if c.kind == "boot-log"] == ["listening"]


def test_a_clone_that_a_kill_left_half_done_is_made_anew(make: Make, repository: Path) -> None:
    agent = make(checkout={"kind": "clone", "url": str(repository)})
    partial = agent.folder / "checkout.partial"
    (partial / ".git").mkdir(parents=True)
    (partial / "rubbish").touch()
    assert agent.prepare().returncode == 0
    assert not partial.exists()
    assert not (agent.checkout / "rubbish").exists()
    assert agent.prepare().returncode == 0


@pytest.mark.parametrize(
    ("checkout", "says"),
    [
        ({"kind": "clone", "url": "/not/there"}, "does not exist"),
        ({"kind": "clone", "url": "REPOSITORY", "ref": "no-such-branch"}, "no-such-branch"),
        ({"kind": "clone", "url": "REPOSITORY", "ref": "--upload-pack=touch /tmp/owned"}, "--upload-pack"),
        ({"kind": "clone", "url": "--upload-pack=false"}, "does not exist"),
        ({"kind": "clone", "url": "https://user:hunter2@localhost:1/x"}, "localhost"),
        ({"kind": "strange"}, "checkout.kind"),
    ],
)
def test_prepare_fails_with_one_line_and_leaves_no_checkout(
    make: Make, repository: Path, checkout: dict[str, str], says: str
) -> None:
    agent = make(checkout=json.loads(json.dumps(checkout).replace("REPOSITORY", str(repository))))
    failed = agent.prepare()
    assert failed.returncode == 1
    assert says in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert "hunter2" not in failed.stderr
    assert not list(agent.folder.glob("checkout*"))


def test_a_folder_with_something_in_it_is_not_taken_for_a_checkout(make: Make) -> None:
    agent = make(checkout={"kind": "empty"})
    agent.checkout.mkdir()
    (agent.checkout / "precious").touch()
    failed = agent.prepare()
    assert (failed.returncode, "is not empty" in failed.stderr) == (1, True)
    assert [p.name for p in agent.checkout.iterdir()] == ["precious"]


def test_hooks_and_the_git_environment_of_the_machine_have_no_say(
    make: Make, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = tmp_path / "templates" / "hooks"
    templates.mkdir(parents=True)
    hook = templates / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "init.templateDir")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(templates.parent))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(f"[init]\ntemplateDir = {templates.parent}\n")
    agent = make(checkout={"kind": "clone", "url": str(repository)})
    assert agent.prepare().returncode == 0
    assert not (tmp_path / "hooked").exists()
