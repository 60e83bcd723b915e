"""Records one history of each way a task can go, for this release: ``make histories``.

They are written to ``tests/histories/<version>/`` and committed with the release; every later release must replay them.
Run it once a release, never to make a failing replay pass.
"""

import asyncio
import contextlib
import json
import re
import sys
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowFailureError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from messages import names
from messages.activities import LastLook
from messages.errors import ErrorType
from messages.search_attributes import SEARCH_ATTRIBUTES
from messages.statuses import SessionStatus
from tests.support.temporal import dev_server_path
from tests.workflows.conftest import (
    Scene,
    ScriptedActivities,
    finished,
    lost,
    provisioning_failed,
    ready,
    refused,
    task_input,
)

ROOT = Path(__file__).parents[2]
Way = Callable[[Scene, Any], Awaitable[None]]


async def _completed(scene: Scene, handle: Any) -> None:
    await handle.signal(names.WORKSPACE_READY, ready(scene.task))
    await handle.signal(names.SESSION_FINISHED, finished(scene.task))


async def _completed_after_waiting(scene: Scene, handle: Any) -> None:
    await scene.event("timer_started")
    await handle.signal(names.WORKSPACE_READY, ready(scene.task))
    await scene.event("timer_canceled")
    await handle.signal(names.SESSION_FINISHED, finished(scene.task))


async def _session_failed(scene: Scene, handle: Any) -> None:
    await scene.event("timer_started")
    failed = finished(scene.task, status=SessionStatus.FAILED, exit_code=3, error="exited with 3")
    await handle.signal(names.SESSION_FINISHED, failed)


async def _provisioning_failed(scene: Scene, handle: Any) -> None:
    await scene.event("timer_started")
    await handle.signal(names.PROVISIONING_FAILED, provisioning_failed(scene.task))


async def _lost(scene: Scene, handle: Any) -> None:
    await scene.event("timer_started")
    await handle.signal(names.WORKSPACE_LOST, lost(scene.task))


async def _cancelled(scene: Scene, handle: Any) -> None:
    await scene.event("timer_started")
    await handle.cancel()


async def _untouched(scene: Scene, handle: Any) -> None:
    """Let it end by itself."""


async def _found_ready(_: Any) -> LastLook:
    return LastLook(ready=True)


IMMEDIATE = {"readiness": "immediate"}
SHORT = {"runtime_config": {"provision_timeout_seconds": 1}, "session_timeout": "1s"}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], Way]] = {
    "immediate_completed": (IMMEDIATE, {}, _completed),
    "immediate_session_failed": (IMMEDIATE, {}, _session_failed),
    "immediate_session_overdue": (IMMEDIATE | SHORT, {}, _untouched),
    "immediate_session_lost": (IMMEDIATE, {}, _lost),
    "immediate_cancelled": (IMMEDIATE, {}, _cancelled),
    "callback_completed": ({}, {}, _completed_after_waiting),
    "callback_before_the_wait": ({}, {}, _completed),
    "callback_failed": ({}, {}, _provisioning_failed),
    "callback_lost": ({}, {}, _lost),
    "callback_cancelled": ({}, {}, _cancelled),
    "callback_timed_out": (SHORT, {}, _untouched),
    "callback_found_ready": (SHORT, {"look_once_more": _found_ready}, _untouched),
    "preflight_refused": ({}, {"preflight_task": refused(ErrorType.INVALID_TASK)}, _untouched),
    "provisioning_refused": ({}, {"provision_workspace": refused(ErrorType.PROVISION_FAILED)}, _untouched),
    "session_refused": (IMMEDIATE, {"create_session": refused(ErrorType.SESSION_REFUSED)}, _untouched),
    "result_not_saved": (IMMEDIATE, {"release_workspace": refused(ErrorType.RESULT_NOT_SAVED)}, _completed),
}
"""By name: template fields, activities that answer otherwise, and what happens to the task."""


def _without_traces(value: Any) -> Any:
    """Leave out stack traces: they name the paths of the machine, and a replay does not read them."""
    if isinstance(value, dict):
        return {key: _without_traces(part) for key, part in value.items() if key != "stackTrace"}
    return [_without_traces(part) for part in value] if isinstance(value, list) else value


async def record(folder: Path) -> None:
    """Run every way on a development server of its own and write what it left."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=dev_server_path(),
        dev_server_log_level="error",
        search_attributes=SEARCH_ATTRIBUTES,
        data_converter=pydantic_data_converter,
    )
    async with environment:
        for name, (template, hooks, way) in WAYS.items():
            task = task_input(**template)
            scene = Scene(environment, task, f"q-{task.task_id}", ScriptedActivities(f"q-{task.task_id}"))
            scene.world.hooks.update(hooks)
            async with scene.worker(identity="worker"):
                handle = await scene.start()
                await way(scene, handle)
                with contextlib.suppress(WorkflowFailureError):
                    await handle.result()
            history = json.loads((await handle.fetch_history()).to_json())
            text = re.sub(r'"\d+@[^"]+"', '"client"', json.dumps(_without_traces(history), indent=1))
            (folder / f"{name}.json").write_text(text + "\n")


def main() -> int:
    """Record the histories of the version in ``pyproject.toml``; refuse to overwrite those of a release."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folder = ROOT / "tests" / "histories" / version
    if folder.exists():
        print(f"{folder} exists; histories of a release are never recorded again", file=sys.stderr)
        return 1
    folder.mkdir()
    asyncio.run(record(folder))
    print(f"recorded {len(WAYS)} histories in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
