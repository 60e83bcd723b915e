"""What the shell offers for a word: ids of tasks, names of templates and agents.

A key press waits for this, so nothing is imported that takes long to load (pydantic and httpx do), the service may take
0.15 s, and whatever goes wrong offers nothing and says nothing.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from messages.defaults import DEFAULT_API_URL, default_home, token_path
from messages.urls import is_loopback

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

BACKENDS = ("local", "worktree", "container")
AGENTS = ("shell", "claude-code", "codex", "gemini", "opencode")
_ANSWER_SECONDS = 0.15
_NAME = re.compile(r"^name:\s*[\"']?([a-z0-9][a-z0-9-]*)", re.MULTILINE)

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def task_ids(*statuses: str) -> Complete:
    """Return what completes the ids of tasks: of these statuses, or of any."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        paths = [f"/api/tasks?limit=100&status={status}" for status in statuses] or ["/api/tasks?limit=100"]
        return [
            CompletionItem(task["id"], help=_one_line(f"{task['status']}: {task['prompt']}"))
            for answer in _ask(paths)
            for task in answer.get("tasks", [])
            if task["id"].startswith(incomplete)
        ]

    return complete


def templates(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete the names of templates: of the files here, and of what the service knows."""
    names = {template["name"] for answer in _ask(["/api/templates"]) for template in answer.get("templates", [])}
    return _items({*names, *_names_of_files()}, incomplete)


def agents(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete the names of preset agents."""
    return _items(AGENTS, incomplete)


def backends(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete the names of backends."""
    return _items(BACKENDS, incomplete)


def folders(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Let the shell complete a folder."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def _items(names: Iterable[str], incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _one_line(text: str) -> str:
    line = " ".join(text[:200].split())
    return "".join(c for c in line if c.isprintable())[:60]


def _names_of_files() -> set[str]:
    from importlib.util import find_spec

    found: set[str] = set()
    with contextlib.suppress(Exception):
        spec = find_spec("api")
        folders = [Path(folder, "builtin_templates") for folder in (spec and spec.submodule_search_locations) or ()]
        if own := os.environ.get("TASKRUNNER_TEMPLATES"):
            folders.append(Path(own).expanduser())
        for folder in folders:
            for file in [*folder.glob("*.yaml"), *folder.glob("*.yml")]:
                if name := _NAME.search(file.read_text(errors="replace")):
                    found.add(name[1])
    return found


def _ask(paths: list[str]) -> list[dict[str, Any]]:
    """Return what the service answers to each path; nothing where it does not within the time that there is."""
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            url, token = _service()
            if token:  # nothing is answered without one
                answers.extend(_get(url + path, token) for path in paths)

    # A socket's own timeout bounds each step of an answer, not the whole of it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return list(answers)


def _service() -> tuple[str, str | None]:
    """Return address and token of the service that ``cli.discovery`` would find, without asking first if it answers.

    A token of the home is for this machine alone, as there (``service_at``).
    """
    home = Path(os.environ.get("TASKRUNNER_HOME") or default_home()).expanduser()
    token = os.environ.get("TASKRUNNER_API_TOKEN")
    url = os.environ.get("TASKRUNNER_API_URL") or _embedded(home)
    if not url:  # a token of the home opens the home's own stack only
        return DEFAULT_API_URL, token
    if not token and is_loopback(url):
        token = token_path(home).read_text().strip()
    return url.rstrip("/"), token


def _embedded(home: Path) -> str | None:
    """Return the address of the home's stack while the process that wrote it lives."""
    import json

    try:
        record = json.loads((home / "stack.json").read_bytes())
        started = Path(f"/proc/{record['pid']}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
        return str(record["api_url"]) if int(started) == record["started"] else None
    except (OSError, ValueError, LookupError):
        return None


def _get(url: str, token: str) -> dict[str, Any]:
    import json
    from urllib.request import ProxyHandler, Request, build_opener

    opener = build_opener(ProxyHandler({})) if is_loopback(url) else build_opener()
    request = Request(url)  # noqa: S310 (the user's own service)
    request.add_unredirected_header("Authorization", f"Bearer {token}")  # for it, not for whom it points at
    with opener.open(request, timeout=_ANSWER_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
