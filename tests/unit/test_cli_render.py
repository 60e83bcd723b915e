"""How tasks look in a terminal, whatever part of their record is missing."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from cli import render
from cli.commands.tasks import list_tasks
from messages.statuses import (
    BackendKind,
    BootStatus,
    EventKind,
    FailureSource,
    SessionStatus,
    TaskStatus,
    TaskStep,
    WorkspaceStatus,
)
from messages.tasks import ProvisionFailure, SavedResult
from messages.views import BootLogEntry, EventView, SessionView, StepView, TaskView, WorkspaceView

BEGUN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def task(**changes: object) -> TaskView:
    bare = {
        "id": "t-1",
        "status": TaskStatus.QUEUED,
        "backend": BackendKind.LOCAL,
        "template": "local",
        "prompt": "do it",
        "created_at": BEGUN,
        "workflow_id": "task-t-1",
        "workspace_id": "w-1",
    }
    return TaskView.model_validate(bare | changes)


WORKSPACE = WorkspaceView(
    id="w-1",
    task_id="t-1",
    backend=BackendKind.LOCAL,
    status=WorkspaceStatus.PENDING,
    attempt=1,
    owner_workflow_id="task-t-1",
    created_at=BEGUN,
)
SESSION = SessionView(id="s-1", attempt=1, turn=1, status=SessionStatus.STARTING)
RESULT = SavedResult(branch="taskrunner/t-1", base_commit="a", commit="b", files_changed=1, insertions=2, deletions=3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.00s"),
        (0.004, "0.00s"),
        (9.994, "9.99s"),
        (9.999, "10.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (3599.6, "1h00m"),
        (90061, "25h01m"),
    ],
)
def test_spans_are_short_and_never_odd(seconds: float, text: str) -> None:
    assert render.span(timedelta(seconds=seconds)) == text


def test_steps_are_called_the_same_wherever_people_read_them() -> None:
    running = task(
        status=TaskStatus.RUNNING,
        step=TaskStep.SESSION_RUNNING,
        steps=[StepView(step=TaskStep.CREATING_SESSION, at=BEGUN), StepView(step=TaskStep.SESSION_RUNNING, at=BEGUN)],
    )
    moved = EventView(id=1, kind=EventKind.TASK_STEP, previous="creating_session", current="session_running", at=BEGUN)
    texts = (render.task_table([running]), render.task_page(running), render.no_output(running))
    for text in (*texts, render.event_line(moved)):
        assert "session running" in text
        assert "session_running" not in text
        assert "creating_session" not in text


LONG = "make the tests pass again"


@pytest.mark.parametrize(
    ("room", "error", "shown"),
    [
        (42, "no answer", [f"{LONG}  no answer", "true                       -"]),
        (42, "no answer from the host", ["make the tests pass…  no answer from the …", "true                  -"]),
        (41, "no answer", ["no answer", "true"]),
        (0, "no answer from the host", ["no answer from the …", "true"]),
    ],
)
def test_a_list_shows_prompts_beside_errors_where_there_is_room_for_both(
    monkeypatch: pytest.MonkeyPatch, room: int, error: str, shown: list[str]
) -> None:
    tasks = [task(id="t" * 40, status=TaskStatus.FAILED, prompt=LONG, error=error), task(prompt="true")]
    before = render.task_table(tasks).splitlines()[0].index("PROMPT")
    monkeypatch.setattr(render, "terminal_width", lambda: before + room)
    head, *lines = (line[before:] for line in click.unstyle(render.task_table(tasks)).splitlines())
    assert lines == shown
    assert head.split() == (["PROMPT", "ERROR"] if room == 42 else ["PROMPT", "OR", "ERROR"])
    assert render.task_table(tasks[1:]).splitlines()[0].endswith("TOOK  PROMPT")


@pytest.mark.parametrize("written", ["session running", "session_running"])
def test_a_list_can_be_asked_for_a_step_as_it_is_shown(written: str) -> None:
    asked = list_tasks.make_context("list", ["--step", written])
    assert asked.params["step"] == TaskStep.SESSION_RUNNING


@pytest.mark.parametrize(
    "record",
    [
        task(),
        task(status=TaskStatus.RUNNING),
        task(status=TaskStatus.FAILED),
        task(workspace=WORKSPACE, session=SESSION, result=RESULT),
        task(status=TaskStatus.COMPLETED, finished_at=BEGUN, session=SESSION.model_copy(update={"exit_code": 0})),
        task(steps=[StepView(step=TaskStep.PREFLIGHT, at=BEGUN)]),
    ],
)
def test_records_with_parts_missing_are_shown_everywhere(record: TaskView) -> None:
    """S49: in lists, alone, and as an outcome."""
    for text in (render.task_table([record]), render.task_page(record), render.outcome(record)):
        assert text
        assert "None" not in text


def test_a_failed_provisioning_shows_its_error_and_the_last_lines_of_its_log() -> None:
    failure = ProvisionFailure(
        source=FailureSource.BOOTSTRAP,
        backend=BackendKind.LOCAL,
        workspace_id="w-1",
        attempt=1,
        error="setup failed",
        detail="\n".join(f"line {n}" for n in range(50)),
    )
    text = render.outcome(task(status=TaskStatus.FAILED, error="setup failed", failure=failure))
    assert "error  setup failed" in text
    assert "| line 49" in text
    assert "| line 29" not in text


@pytest.mark.parametrize(
    ("kind", "change", "detail", "line"),
    [
        (
            EventKind.TASK_STATUS,
            ("running", "failed"),
            {"error": "the session failed: exited with 4", "error_type": "SessionFailed"},
            "task status       running → failed: the session failed: exited with 4",
        ),
        (
            EventKind.SESSION_STATUS,
            ("running", "completed"),
            {"error": None, "exit_code": 0},
            "session status    running → completed (exit code 0)",
        ),
        (
            EventKind.SESSION_STATUS,
            ("running", "cancelled"),
            {"error": "cancelled", "exit_code": 143},
            "session status    running → cancelled (exit code 143)",
        ),
        (
            EventKind.WORKSPACE_PROVISION_FAILED,
            (None, None),
            {
                "error": "setup[0] exited with 3",
                "detail": "a log of many lines",
                "source": "bootstrap",
                "attempt": 2,
                "backend": "local",
                "timeout_secs": 600,
                "workspace_id": "w-1",
            },
            "WORKSPACE_PROVISION_FAILED  setup[0] exited with 3 (bootstrap, attempt 2, backend local)",
        ),
        (
            EventKind.RESULT_SAVED,
            (None, None),
            RESULT.model_copy(update={"repository_path": "/srv/app"}).model_dump(mode="json"),
            "result saved      taskrunner/t-1: 1 file changed, +2 -3, in /srv/app",
        ),
        (EventKind.RESULT_SAVED, (None, None), {"branch": "b"}, "result saved      (branch b)"),
        (EventKind.LEAK_SUSPECTED, (None, None), {"reason": "no answer"}, "leak suspected    no answer"),
    ],
)
def test_an_event_reads_as_a_sentence(
    kind: EventKind, change: tuple[str | None, str | None], detail: dict[str, object], line: str
) -> None:
    event = EventView(id=1, kind=kind, previous=change[0], current=change[1], detail=detail, at=BEGUN)
    assert render.event_line(event).partition("  ")[2] == line


def test_a_session_that_the_task_ended_is_not_said_to_have_failed_by_itself() -> None:
    """Its exit code is that of our signal."""
    ended = SESSION.model_copy(update={"status": SessionStatus.CANCELLED, "exit_code": 143, "error": "cancelled"})
    record = task(status=TaskStatus.FAILED, error="the session did not end within 1s", session=ended)
    assert "exit code" not in render.outcome(record)
    page = render.task_page(record)
    assert "s-1: cancelled by the task, whose error says why" in page
    assert page.count("error") == 2
    assert "by the task" not in render.task_page(task(status=TaskStatus.CANCELLED, session=ended))


def test_text_of_others_cannot_steer_the_terminal() -> None:
    """An agent's error, or a prompt, may hold escape sequences; they are shown, not obeyed."""
    evil = "a\x1b[2Jb\rc\x07\u202e"
    for text in (
        render.task_table([task(prompt=evil)]),
        render.outcome(task(status=TaskStatus.FAILED, error=evil)),
        render.task_page(task(prompt=evil, error=evil, last_error=evil)),
        render.event_line(
            EventView(id=1, kind=EventKind.TASK_STATUS, previous="a", current="b", detail={"x": evil}, at=BEGUN)
        ),
    ):
        assert not {"\x1b", "\r", "\x07", "\u202e"} & set(
            text.replace("\x1b[0m", "")
            .replace("\x1b[31m", "")
            .replace("\x1b[31;1m", "")
            .replace("\x1b[31m\x1b[1m", "")
            .replace("\x1b[1m", "")
        )
        assert "\\x1b[2Jb" in text


def test_a_run_that_changed_nothing_says_so() -> None:
    assert "change  none" in render.outcome(task(status=TaskStatus.COMPLETED))
    assert "change" not in render.outcome(task(status=TaskStatus.FAILED, error="exit code 1"))


@pytest.mark.parametrize("result", [None, RESULT], ids=["nothing else changed", "a result"])
def test_what_could_not_be_kept_is_said_once_and_cannot_steer_the_terminal(result: SavedResult | None) -> None:
    told = {"attempt": 1, "step": "not kept", "status": "completed", "message": "in \x1b[2Jsm", "timestamp": BEGUN}
    workspace = WORKSPACE.model_copy(update={"boot_log": [BootLogEntry.model_validate(told)] * 2})
    record = task(status=TaskStatus.COMPLETED, workspace=workspace, result=result)
    for text in (render.outcome(record), render.task_page(record)):
        lines = [line for line in text.splitlines() if "not kept" in line and "completed" not in line]
        assert len(lines) == 1, text
        assert lines[0].lstrip().startswith("not kept")
        assert "\x1b[2J" not in text
        assert "nothing was changed" not in text


def test_columns_are_aligned_by_what_is_seen() -> None:
    table = render.table(("A", "B"), [("\x1b[31mred\x1b[0m", "1"), ("longer", "2")])
    seen = [line.replace("\x1b[31m", "").replace("\x1b[0m", "") for line in table.splitlines()]
    assert seen == ["A       B", "red     1", "longer  2"]


@pytest.mark.parametrize("repository_path", [None, "/home/me/project"])
def test_a_change_in_a_bundle_is_said_to_be_on_no_branch_of_the_users(repository_path: str | None) -> None:
    """Of the backend local: its repository is gone with the workspace, even where it was a clone of one."""
    result = RESULT.model_copy(update={"bundle": True, "repository_path": repository_path})
    record = task(status=TaskStatus.COMPLETED, result=result)
    command = "taskrunner diff t-1 --bundle FILE && git fetch FILE taskrunner/t-1:taskrunner/t-1"
    for text in (render.outcome(record), render.outcome(record, stack_ends=True), render.task_page(record)):
        assert command in text
        assert "git -C" not in text
        assert "/home/me/project" not in text
        assert "bundle" in text


def test_a_change_that_was_pushed_is_shown_where_it_is_and_one_that_was_not_with_the_reason() -> None:
    pushed = RESULT.model_copy(update={"pushed_to": "https://example.org/app.git"})
    record = task(status=TaskStatus.COMPLETED, result=pushed)
    for text in (render.outcome(record), render.outcome(record, stack_ends=True), render.task_page(record)):
        assert "taskrunner/t-1" in text
        assert "https://example.org/app.git" in text
    refused = RESULT.model_copy(update={"bundle": True, "push_error": "refused:\x1b[2J no"})
    record = task(status=TaskStatus.COMPLETED, result=refused)
    for text in (render.outcome(record), render.task_page(record)):
        assert "refused:\\x1b[2J no" in text
        assert "--bundle FILE" in text


def test_the_end_of_a_run_says_where_to_look_and_names_no_page_that_ends_with_its_stack() -> None:
    record = task(status=TaskStatus.COMPLETED, result=RESULT, ui_url="http://127.0.0.1:8233/x")
    with_stack, alone = render.outcome(record), render.outcome(record, stack_ends=True)
    assert "ui      http://127.0.0.1:8233/x" in with_stack
    assert "http://" not in alone
    assert "more    taskrunner show t-1; in Temporal's UI: taskrunner dev" in alone
    for text in (with_stack, alone):
        assert "see: taskrunner diff t-1" in text


def test_an_entry_of_the_boot_log_shows_its_log_and_no_escape_sequence() -> None:
    """S39, S49"""
    entry = BootLogEntry(attempt=2, step="setup[0]", status=BootStatus.FAILED, message="", timestamp=BEGUN)
    assert render.boot_log_entry(entry).endswith(" attempt 2 setup[0] failed")
    entry = entry.model_copy(update={"message": "exited\nwith 1", "detail": "no\x1b[2J space\nleft\n"})
    first, *detail = render.boot_log_entry(entry).splitlines()
    assert first.endswith("setup[0] failed: exited with 1")
    assert detail == ["  | no\\x1b[2J space", "  | left"]


def test_what_a_running_session_waits_for_is_not_shown_as_its_last_line() -> None:
    waiting = SESSION.model_copy(update={"status": SessionStatus.RUNNING, "summary": "waiting_for_user: Which branch?"})
    assert "now      waiting_for_user: Which branch?" in render.task_page(task(session=waiting))
    ended = waiting.model_copy(update={"status": SessionStatus.COMPLETED, "summary": "done"})
    assert "last line  done" in render.task_page(task(session=ended))
