"""Templates as files, and how a request becomes a task."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from api.templates import MAX_TEMPLATE_BYTES, TemplateError, TemplateFolder, resolve
from messages.names import is_id
from messages.statuses import BackendKind, Readiness
from messages.tasks import TaskRequest

HOST = "this-host"
RESERVED = "is ours: a variable whose name begins with TASKRUNNER_ is not taken"


def _resolve(folder: TemplateFolder, **request: Any) -> Any:
    return resolve(TaskRequest.model_validate({"prompt": "true", **request}), folder, host_id=HOST)


def test_the_built_in_templates_are_there() -> None:
    folder = TemplateFolder()
    assert {t.name: (t.backend, t.effective_readiness) for t in folder.all()} == {
        "container": (BackendKind.CONTAINER, Readiness.CALLBACK),
        "local": (BackendKind.LOCAL, Readiness.IMMEDIATE),
        "worktree": (BackendKind.WORKTREE, Readiness.IMMEDIATE),
    }
    assert folder.broken() == {}


def test_a_folder_adds_to_them_and_a_change_is_seen(tmp_path: Path) -> None:
    folder = TemplateFolder(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nbackend: local\nsession_timeout: 5m\n")
    assert folder.find("mine").session_timeout == timedelta(minutes=5)
    file.write_text("name: mine\nbackend: local\nsession_timeout: 10m\n")
    assert folder.find("mine").session_timeout == timedelta(minutes=10)
    file.unlink()
    with pytest.raises(TemplateError, match="known: container, local, worktree"):
        folder.find("mine")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"name: mine\nbackend: lokal\n", "backend: has to be one of: local, worktree"),
        (b"name: Mine!\nbackend: local\n", "name: has to be at most 40 small letters"),
        (b"backend: local\n", "name: is missing"),
        (b"name: mine\nbackend: local\nsetup: x\n", "setup: has to be a list"),
        (b"name: mine\nbackend: local\nenv: [x]\n", "env: has to be a mapping"),
        (b"name: mine\nbackend: local\nruntime_config: {provision_timeout_seconds: x}\n", "a whole number"),
        (b"name: mine\nbackend: local\nsetpu: []\n", "did you mean 'setup'"),
        (b"name: mine\nbackend: vm\n", "not available in this release"),
        (b"name: local\nbackend: local\n", "is taken"),
        (b"name: [\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n", "not a mapping"),
        (b"", "not a mapping"),
        (b"name: mine\nbackend: local\nagent: nope\n", "known: shell"),
        (b"name: mine\nbackend: local\n1: 2\n", "unknown key 1"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"#" * (MAX_TEMPLATE_BYTES + 1), "larger"),
        (b"name: mine\nbackend: local\nname: yours\n", "the key 'name' is there twice, in lines 1 and 3; keep one"),
        (b"name: mine\nbackend: local\nenv:\n  A: x\n  'A': y\n", "the key 'A' is there twice, in lines 4 and 5"),
        (b"name: mine\nbackend: local\nsetup: [{a: 1, b: 2, a: 3}]\n", "the key 'a' is there twice, in line 3"),
        (b"name: mine\nbackend: local\nsetup: ['true', ' ']\n", "setup: command 2 is blank; leave it out"),
        (b"name: mine\nbackend: local\nenv: {TASKRUNNER_COMPUTE: x}\n", f"env: TASKRUNNER_COMPUTE {RESERVED}"),
        (
            b"name: mine\nbackend: local\nagent: {kind: harnessd, command: [x], env: {TASKRUNNER_A: x}}\n",
            f"agent.env: TASKRUNNER_A {RESERVED}",
        ),
        (b"name: mine\nbackend: local\nruntime_config: {provision_timeout_seconds: true}\n", "a whole number"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_a_broken_file_is_named_with_its_reason_and_spoils_no_other(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "broken.yml").write_bytes(text)
    (tmp_path / "good.yaml").write_text("name: good\nbackend: local\n")
    (tmp_path / "notes.txt").write_text("no template")
    folder = TemplateFolder(tmp_path)
    assert [t.name for t in folder.all()] == ["container", "good", "local", "worktree"]
    assert list(folder.broken()) == ["broken.yml"]
    assert why in folder.broken()["broken.yml"]
    assert "\n" not in folder.broken()["broken.yml"]
    with pytest.raises(TemplateError, match=r"^the template 'broken' cannot be used: broken\.yml: .*"):
        folder.find("broken")
    with pytest.raises(TemplateError, match="worktree; 1 file cannot be used: taskrunner templates list"):
        folder.find("other")


def test_a_key_that_is_merged_in_may_be_given_again(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nbackend: local\nenv: &base {A: base, B: base}\n"
        "agent: {kind: harnessd, command: [x], env: {<<: *base, A: own}}\n"
    )
    folder = TemplateFolder(tmp_path)
    assert folder.broken() == {}
    assert folder.find("mine").agent.env == {"A": "own", "B": "base"}


def test_a_folder_that_is_not_there_says_which_setting_to_check(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="TASKRUNNER_TEMPLATES"):
        TemplateFolder(tmp_path / "nope").all()


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()  # permissions would not keep root out
    assert "cannot be read" in TemplateFolder(tmp_path).broken()["a.yaml"]


def test_a_dangling_link_in_the_folder_is_reported_and_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    folder = TemplateFolder(tmp_path)
    assert [t.name for t in folder.all()] == ["container", "local", "worktree"]
    assert "cannot be read" in folder.broken()["gone.yaml"]


def test_the_backend_follows_from_the_repository() -> None:
    folder = TemplateFolder()
    assert _resolve(folder).template.name == "local"
    task = _resolve(folder, repository={"path": "/srv/x"}, ref="main")
    assert (task.template.name, task.repository.host, task.ref) == ("worktree", HOST, "main")
    assert _resolve(folder, repository={"path": "/srv/x"}, backend="local").template.backend is BackendKind.LOCAL
    assert _resolve(folder, repository={"path": "/srv/x", "host": "far"}).repository.host == "far"


def test_what_the_request_says_replaces_what_the_template_says(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nbackend: local\nagent: {kind: command, command: [run, '{prompt}']}\n"
        "env: {A: b}\nsession_timeout: 5m\n"
    )
    folder = TemplateFolder(tmp_path)
    plain = _resolve(folder, template="mine").template
    assert plain.agent.argv("x") == ["run", "x"]
    changed = _resolve(
        folder, template="mine", agent="shell", timeout="1h", backend="worktree", repository={"path": "/r"}
    ).template
    assert (changed.name, changed.backend, changed.env) == ("mine", BackendKind.WORKTREE, {"A": "b"})
    assert changed.agent.argv("x") == ["/bin/sh", "-c", "--", "x"]
    assert changed.session_timeout == timedelta(hours=1)


def test_a_template_that_lacks_something_for_what_was_asked_is_named(tmp_path: Path) -> None:
    (tmp_path / "review.yaml").write_text("name: review\nbackend: local\n")
    with pytest.raises(TemplateError, match=r"^template 'review': backend container needs the key container"):
        _resolve(TemplateFolder(tmp_path), template="review", backend="container")


def test_backends_of_later_releases_are_not_offered(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("name: odd\nbackend: lokal\n")
    (tmp_path / "later.yaml").write_text("name: later\nbackend: vm\n")
    assert TemplateFolder(tmp_path).broken() == {
        "odd.yaml": "backend: has to be one of: local, worktree, container",
        "later.yaml": "backend 'vm' is not available in this release; use one of: local, worktree, container",
    }


def test_ids_are_made_where_none_is_given() -> None:
    folder = TemplateFolder()
    tasks = [_resolve(folder) for _ in range(50)]
    for task in tasks:
        assert is_id(task.task_id)
        assert is_id(task.workspace_id)
    assert len({task.task_id for task in tasks}) == len({task.workspace_id for task in tasks}) == 50
    assert _resolve(folder, id="mine").task_id == "mine"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"backend": "worktree"}, "needs a repository"),
        ({"ref": "main"}, "without a repository"),
        ({"repository": {"path": "/x"}, "template": "pushing"}, "needs a repository by URL"),
        ({"template": "pushing", "backend": "local"}, "needs a repository by URL"),
        ({"backend": "vm"}, "not available in this release"),
        ({"template": "x" * 5000}, "no template"),
        ({"agent": "wizard"}, "known: shell, claude-code"),
        ({"timeout": "0s"}, "positive"),
    ],
)
def test_what_cannot_run_says_why(tmp_path: Path, request_: dict[str, Any], why: str) -> None:
    (tmp_path / "pushing.yaml").write_text("name: pushing\nbackend: worktree\npush: true\n")
    with pytest.raises(TemplateError, match=why) as caught:
        _resolve(TemplateFolder(tmp_path), **request_)
    assert len(str(caught.value)) < 500


def test_a_repository_by_url_is_on_no_host_unless_it_is_a_file() -> None:
    for url, host in (("https://example.org/x", None), ("git@example.org:x", None), ("file:///srv/x", HOST)):
        task = _resolve(TemplateFolder(), repository={"url": url})
        assert (task.template.name, task.repository.host) == ("worktree", host)


def test_values_that_nobody_could_pass_on_are_refused(tmp_path: Path) -> None:
    """An image without our agent speaks no word with us but its own HTTP, whose token is all that it gets."""
    (tmp_path / "bare.yaml").write_text(
        "{name: bare, backend: container, container: {image: x, workspace_agent: none, port: 80},"
        " agent: {kind: harnessd, token_env: TOKEN}, required_env: [TOKEN]}"
    )
    folder = TemplateFolder(tmp_path)
    with pytest.raises(TemplateError, match="nobody could give A_KEY to what runs there"):
        _resolve(folder, template="bare", env={"TOKEN": "x", "A_KEY": "y"})
    assert _resolve(folder, template="bare", env={"TOKEN": "x"}).env_names == ("TOKEN",)
