"""How things look in a terminal: aligned columns, local times, durations; colours only where a terminal reads them."""

import contextlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import click

from messages.callbacks import NOT_KEPT
from messages.statuses import EventKind, SessionStatus, TaskStatus, TaskStep
from messages.tasks import SavedResult
from messages.views import BootLogEntry, EventView, SessionView, TaskSummary, TaskView

_COLOURS = {
    TaskStatus.COMPLETED: "green",
    TaskStatus.FAILED: "red",
    TaskStatus.CANCELLED: "yellow",
    TaskStatus.RUNNING: "cyan",
}
_SHOWN_IDS = 3
_NARROWEST = 20
"""Characters of a prompt or an error that are worth a column."""


def say(text: str) -> None:
    """Write a line about what goes on to stderr; nobody misses it where that is gone, as a terminal that was closed."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def printable(text: str) -> str:
    """Return ``text`` in one line, control characters (escape sequences too) shown as they are written."""
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else repr(c)[1:-1] for c in text)


def shorten(text: str, width: int) -> str:
    """Return ``text`` in one line of at most ``width`` characters."""
    return shorten_to(" ".join(printable(text).split()), width)


def shorten_to(text: str, width: int) -> str:
    """Return ``text`` as it is, cut after ``width`` characters."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def status_text(status: TaskStatus) -> str:
    """Return a status in its colour."""
    return click.style(status.value, fg=_COLOURS.get(status))


def step_text(step: str) -> str:
    """Return a step as people read it; programs, JSON and ``list --step`` have its wire name."""
    return step.replace("_", " ")


def clock(at: datetime | None) -> str:
    """Return a time of day, local, with the date where it is not today's."""
    if at is None:
        return "-"
    local, today = at.astimezone(), datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S")


def span(duration: timedelta) -> str:
    """Return a duration: ``0.42s``, ``12.3s``, ``4m07s``, ``2h05m``."""
    seconds = max(duration.total_seconds(), 0.0)
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m"


def lasted(task: TaskSummary) -> str:
    """Return how long a task took, or takes until now."""
    return span((task.finished_at or datetime.now(UTC)) - task.created_at)


def no_output(task: TaskView) -> str:
    """Say why there is no output of a task."""
    if not task.status.is_final:
        step = f": it is at {step_text(task.step)}" if task.step else ""
        return f"no output yet{step}; taskrunner logs -f {task.id}"
    if task.status is TaskStatus.COMPLETED:
        return "no output: the agent said nothing"
    reached = [step_text(step.step) for step in task.steps if step.step is not TaskStep.RELEASING]
    ended = "was cancelled" if task.status is TaskStatus.CANCELLED else task.status.value
    return f"no output: it {ended}{f' in {reached[-1]}' if reached else ''}; taskrunner show {task.id}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns as wide as their widest cell, the last one as wide as it is."""
    lines = [head, *rows]
    widths = [max(len(click.unstyle(line[i])) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            [
                cell + " " * (width - len(click.unstyle(cell)))
                for cell, width in zip(line[:-1], widths[:-1], strict=True)
            ]
            + [line[-1]]
        ).rstrip()
        for line in lines
    )


def fields(pairs: Iterable[tuple[str, str | None]], indent: str = "") -> str:
    """Return names and values in two columns, leaving out what is not known."""
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in known)


def task_table(tasks: Sequence[TaskSummary]) -> str:
    """Return a list of tasks; where lines are too short for errors beside the prompts, these give way to them."""
    known = [("ID", "STATUS", "STEP", "BACKEND", "CREATED", "TOOK")] + [
        (
            task.id,
            status_text(task.status),
            step_text(task.step) if task.step and not task.status.is_final else "-",
            task.backend.value,
            clock(task.created_at),
            lasted(task) if task.status is not TaskStatus.QUEUED else "-",
        )
        for task in tasks
    ]
    taken = sum(max(len(click.unstyle(line[i])) for line in known) + 2 for i in range(len(known[0])))
    texts = _prompts_and_errors(tasks, max(terminal_width() - taken, _NARROWEST))
    head, *rows = [(*line, *text) for line, text in zip(known, texts, strict=True)]
    return table(head, rows)


def _prompts_and_errors(tasks: Sequence[TaskSummary], width: int) -> list[Sequence[str]]:
    """Return the last columns of a list, ``width`` characters in all: their head, and what each task has in them."""
    longest = max((len(task.error or "") for task in tasks), default=0)
    if not longest:
        return [("PROMPT",), *((shorten(task.prompt, width),) for task in tasks)]
    if width < 2 * _NARROWEST + 2:
        return [("PROMPT OR ERROR",), *((shorten(task.error or task.prompt, width),) for task in tasks)]
    # Half of the width for each, and what the other one does not need.
    prompts = [shorten(task.prompt, max((width - 2) // 2, width - 2 - max(longest, len("ERROR")))) for task in tasks]
    left = width - 2 - max(len("PROMPT"), *map(len, prompts))
    errors = [shorten(task.error, left) if task.error else "-" for task in tasks]
    return [("PROMPT", "ERROR"), *zip(prompts, errors, strict=True)]


def terminal_width() -> int:
    """Return how many characters fit into a line; 120 where nobody looks."""
    import shutil

    return shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120


def change_text(result: SavedResult) -> str:
    """Return what a saved change consists of."""
    files = f"{result.files_changed} file{'' if result.files_changed == 1 else 's'}"
    return f"{files} changed, +{result.insertions} -{result.deletions}"


def step_durations(task: TaskView) -> list[tuple[str, timedelta]]:
    """Return each step that a task reached, with how long it took (the current one: until now)."""
    ends = [step.at for step in task.steps[1:]] + [task.finished_at or datetime.now(UTC)]
    return [(step.step.value, end - step.at) for step, end in zip(task.steps, ends, strict=True)]


def outcome(task: TaskView, *, stack_ends: bool = False) -> str:
    """Return how a task ended, in the lines that end a ``run``; ``stack_ends``: its stack, with Temporal's UI, too."""
    session = task.session
    head = click.style(task.status.value, fg=_COLOURS.get(task.status), bold=True)
    head += f" in {lasted(task)}"
    if session is not None and session.exit_code is not None and not _was_ended(session):
        head += f", exit code {session.exit_code}"
    result = task.result
    return "\n".join(
        part
        for part in (
            head,
            fields(
                (
                    (
                        "error",
                        printable(task.error) if task.error and task.status is not TaskStatus.COMPLETED else None,
                    ),
                    *_kept(task, result),
                    *_not_kept(task),
                    # The UI's link dies with the stack, and the next stack may have it elsewhere.
                    ("more", f"taskrunner show {task.id}; in Temporal's UI: taskrunner dev" if stack_ends else None),
                    ("ui", None if stack_ends else task.ui_url),
                ),
                indent="  ",
            ),
            _log_tail(task),
        )
        if part
    )


def unfinished(ids: Sequence[str], *, other: bool = False) -> str:
    """Return what is said of tasks that nothing runs; ``other``: than the one that the reader followed."""
    shown = ", ".join(ids[:_SHOWN_IDS]) + (", …" if len(ids) > _SHOWN_IDS else "")
    what, goes = ("task is", "it goes") if len(ids) == 1 else ("tasks are", "they go")
    what = f"other {what}" if other else what
    return f"{len(ids)} {what} unfinished ({shown}); {goes} on while a stack runs: taskrunner dev"


def _kept(task: TaskView, result: SavedResult | None) -> list[tuple[str, str]]:
    """Return where a change is kept and how to see it."""
    if result is None:
        if task.status is not TaskStatus.COMPLETED:
            return []
        return [("change", "none" if _not_kept(task) else "none: nothing was changed")]
    see = f"taskrunner diff {task.id}"
    if result.pushed_to:
        return [
            ("pushed", f"{result.branch} to {result.pushed_to} ({change_text(result)}); see: {see}"),
        ]
    if result.bundle:
        return [
            *_not_pushed(result),
            ("change", f"{change_text(result)}, in a git bundle; see: {see}"),
            ("fetch", _how_to_fetch(task, result)),
        ]
    return [("branch", f"{result.branch} ({change_text(result)}); see: {see}")]


def _not_pushed(result: SavedResult) -> list[tuple[str, str]]:
    return [("not pushed", printable(result.push_error))] if result.push_error else []


def _not_kept(task: TaskView) -> list[tuple[str, str]]:
    """Return what was changed and is lost; said once, however often a release had to be tried."""
    entries = task.workspace.boot_log if task.workspace else []
    return [(NOT_KEPT, text) for text in dict.fromkeys(printable(e.message) for e in entries if e.step == NOT_KEPT)]


def _how_to_fetch(task: TaskView, result: SavedResult) -> str:
    return f"taskrunner diff {task.id} --bundle FILE && {fetch('FILE', result.branch)}"


def fetch(bundle: str, branch: str) -> str:
    """Return the command that gets a task's branch out of its bundle."""
    return shlex.join(["git", "fetch", bundle, f"{branch}:{branch}"])


def _log_tail(task: TaskView) -> str:
    """Return the boot log's end that came with a failed provisioning."""
    detail = task.failure.detail.strip() if task.failure else ""
    if not detail:
        return ""
    return "\n".join(
        ["  last output of the workspace:", *(f"  | {printable(line)}" for line in detail.splitlines()[-20:])]
    )


def task_page(task: TaskView) -> str:
    """Return everything that is known of a task; what is not known is left out."""
    workspace, session, result, failure = task.workspace, task.session, task.result, task.failure
    timeout = task.provision_timeout_seconds
    repository = task.repository
    where = (repository.path or repository.url) if repository else None
    parts = [
        fields(
            (
                ("task", task.id),
                (
                    "status",
                    status_text(task.status)
                    + (f" ({step_text(task.step)})" if task.step and not task.status.is_final else ""),
                ),
                ("error", printable(task.error) if task.error else None),
                ("trying again", printable(task.last_error) if task.last_error else None),
                ("prompt", shorten(task.prompt, 200)),
                ("template", f"{task.template} (backend {task.backend.value})"),
                ("repository", f"{where}{f' at {task.ref}' if task.ref else ''}" if where else None),
                ("submitted env", ", ".join(task.env_names) or None),
                ("created", clock(task.created_at)),
                ("finished", f"{clock(task.finished_at)} (took {lasted(task)})" if task.finished_at else None),
                ("readiness", task.readiness.value if task.readiness else None),
                ("may provision", f"{timeout} s ({task.provision_timeout_rule})" if timeout is not None else None),
                ("workflow", task.workflow_id),
                ("ui", task.ui_url),
            )
        )
    ]
    if task.steps:
        steps = [
            (clock(step.at), step_text(step.step), span(took))
            for step, (_, took) in zip(task.steps, step_durations(task), strict=True)
        ]
        parts.append(table(("STEP AT", "STEP", "TOOK"), steps))
    if workspace is not None:
        parts.append(
            fields(
                (
                    ("workspace", f"{workspace.id} attempt {workspace.attempt}: {workspace.status.value}"),
                    ("verdict", workspace.verdict.value if workspace.verdict else None),
                    ("host", workspace.host_id),
                    ("compute", workspace.name),
                    ("agent", workspace.harness_url),
                    ("heartbeat", _heartbeat(task)),
                    ("leak suspected", clock(workspace.leak_suspected_at) if workspace.leak_suspected_at else None),
                )
            )
        )
        if workspace.boot_log:
            boot = [
                (clock(entry.timestamp), entry.step, entry.status.value, shorten(entry.message, 100))
                for entry in workspace.boot_log
            ]
            parts.append(table(("BOOT AT", "STEP", "STATUS", "MESSAGE"), boot))
    if session is not None:
        parts.append(
            fields(
                (
                    ("session", f"{session.id}: {session.status.value}{_why_ended(task)}"),
                    ("exit code", None if session.exit_code is None else str(session.exit_code)),
                    (
                        "error",
                        printable(session.error) if session.error and session.error != session.status.value else None,
                    ),
                    (
                        "last line" if session.status.is_final else "now",
                        shorten(session.summary, 200) if session.summary else None,
                    ),
                    (
                        "output",
                        f"{session.output_bytes} bytes; see: taskrunner logs {task.id}"
                        if session.output_bytes
                        else None,
                    ),
                )
            )
        )
    kept: list[tuple[str, str | None]] = []
    if result is not None:
        where = f"a git bundle; get it: {_how_to_fetch(task, result)}" if result.bundle else result.repository_path
        where = result.pushed_to or where
        change = f"{result.branch}, {change_text(result)}; see: taskrunner diff {task.id}"
        kept += [("change", change), ("kept in", where), *_not_pushed(result)]
    kept += _not_kept(task)
    if kept:
        parts.append(fields(kept))
    if failure is not None and failure.detail:
        parts.append(_log_tail(task))
    return "\n\n".join(parts)


def _was_ended(session: SessionView) -> bool:
    """Tell whether it was us who ended it: then its exit code says so, and nothing of its work."""
    return session.status is SessionStatus.CANCELLED


def _why_ended(task: TaskView) -> str:
    if task.session is None or task.status is not TaskStatus.FAILED or not _was_ended(task.session):
        return ""
    return " by the task, whose error says why"


def _heartbeat(task: TaskView) -> str | None:
    workspace = task.workspace
    if workspace is None or workspace.last_heartbeat_at is None:
        return None
    state = workspace.heartbeat_state.value if workspace.heartbeat_state else "unknown"
    reason = f": {shorten(workspace.heartbeat_reason, 200)}" if workspace.heartbeat_reason else ""
    return f"{clock(workspace.last_heartbeat_at)} {state}{reason}"


def boot_log_entry(entry: BootLogEntry) -> str:
    """Return one entry of a boot log in one line, and below it the lines of its detail."""
    first = f"{entry.timestamp.astimezone():%H:%M:%S} attempt {entry.attempt} {entry.step} {entry.status.value}"
    if message := shorten(entry.message, 1000):
        first += f": {message}"
    detail = (entry.detail or "").rstrip().splitlines()
    return "\n".join([printable(first), *(f"  | {printable(line)}" for line in detail)])


def event_line(event: EventView) -> str:
    """Return one transition in one line; what it leaves out of the event's detail is shown with the task."""
    at = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    is_failure = event.kind is EventKind.WORKSPACE_PROVISION_FAILED
    what = event.kind.value if is_failure else event.kind.value.replace("_", " ")
    ways = [part for part in (event.previous, event.current) if part]
    change = " → ".join(map(step_text, ways) if event.kind is EventKind.TASK_STEP else ways)
    why, known = (_saved(event), "") if event.kind is EventKind.RESULT_SAVED else _reason(event)
    tail = " ".join(part for part in (": ".join(part for part in (change, why) if part), known) if part)
    return "  ".join(part for part in (at, f"{what:<16}", tail) if part)


def _reason(event: EventView) -> tuple[str, str]:
    """Return why it happened and, in parentheses, what is known besides."""
    detail = {name: value for name, value in event.detail.items() if value not in (None, "", {})}
    why = next((str(detail.pop(name)) for name in ("error", "reason", "note") if name in detail), "")
    if event.kind is EventKind.WORKSPACE_PROVISION_FAILED:
        known = [str(detail["source"])] if "source" in detail else []
        known += [f"{name} {detail[name]}" for name in ("attempt", "backend") if name in detail]
    else:
        # Of an error's type, which is for programs, people are told by the error.
        known = [f"{name.replace('_', ' ')} {value}" for name, value in detail.items() if name != "error_type"]
    return "" if why == event.current else shorten(why, 300), f"({shorten(', '.join(known), 300)})" if known else ""


def _saved(event: EventView) -> str:
    try:
        result = SavedResult.model_validate(event.detail)
    except ValueError:  # an older or a newer release's
        return " ".join(_reason(event)).strip()
    if result.pushed_to:
        where = f", pushed to {result.pushed_to}"
    elif result.bundle:
        where = ", in a git bundle"
    else:
        where = f", in {result.repository_path}" if result.repository_path else ""
    return shorten(f"{result.branch}: {change_text(result)}{where}", 500)
