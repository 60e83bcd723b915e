"""Histories that older releases recorded replay on this code."""

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from messages import names
from workflows.task_runner import TaskRunner

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("*/*.json"))


def test_there_are_histories_of_every_way_a_task_can_go() -> None:
    assert len(HISTORIES) >= 16


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_a_recorded_history_replays(path: Path) -> None:
    """S42"""
    history = WorkflowHistory.from_json("task-recorded", path.read_text())  # noqa: ASYNC240 (a small file)
    replayer = Replayer(workflows=[TaskRunner], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(history)


async def test_a_history_that_does_not_fit_is_noticed() -> None:
    """S42: the replay above would fail if the code took other steps."""
    path = next(path for path in HISTORIES if path.stem == "immediate_completed")
    events = json.loads(path.read_text())
    for event in events["events"]:
        scheduled = event.get("activityTaskScheduledEventAttributes", {})
        if scheduled.get("activityType", {}).get("name") == "provision_workspace":
            scheduled["activityType"]["name"] = "create_session"
    replayer = Replayer(workflows=[TaskRunner], data_converter=pydantic_data_converter)
    with pytest.raises(Exception, match=r"(?i)nondeterminism"):
        await replayer.replay_workflow(WorkflowHistory.from_json(names.task_workflow_id("x"), json.dumps(events)))
