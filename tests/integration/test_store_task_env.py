"""The sealed environment of a task: there from its creation until its release, or its end."""

import pytest

from messages.sealed import SealedEnv
from messages.statuses import TaskStatus
from messages.tasks import TaskOutcome
from store.registry import Registry
from tests.support.records import a_task, provisioning, rows

SEALED = SealedEnv("k1", b"\0\xff nonce and ciphertext")


async def create(registry: Registry, task_id: str = "t-1") -> bool:
    task = a_task(task_id, env_names=("API_KEY",))
    return (await registry.tasks.create(task, digest="d", idempotency_key=None, env=SEALED)).created


async def test_it_is_stored_with_the_task_once_and_its_names_are_shown(registry: Registry) -> None:
    """S20"""
    assert [await create(registry), await create(registry)] == [True, False]
    assert await registry.task_env.find("t-1") == SEALED
    assert len(await rows(registry, "task_env")) == 1
    view = await registry.tasks.get("t-1")
    assert view
    assert view.env_names == ["API_KEY"]


async def test_a_task_without_one_has_none(registry: Registry) -> None:
    await registry.tasks.create(a_task(), digest="d", idempotency_key=None)
    assert await registry.task_env.find("t-1") is None
    view = await registry.tasks.get("t-1")
    assert view
    assert view.env_names == []


async def test_it_goes_when_the_release_begins_and_others_stay(registry: Registry) -> None:
    """S37"""
    await create(registry)
    await create(registry, "t-2")
    task = a_task("t-1")
    await registry.tasks.begin("t-1")
    await registry.workspaces.begin_attempt(task, 1, host_id="here", workflow_id="task-t-1")
    assert await registry.task_env.find("t-1") == SEALED
    await registry.workspaces.begin_release("t-1", task.workspace_id)
    assert await registry.task_env.find("t-1") is None
    assert await registry.task_env.find("t-2") == SEALED


@pytest.mark.parametrize("status", [status for status in TaskStatus if status.is_final])
@pytest.mark.parametrize("began", [False, True])
async def test_it_goes_when_the_task_ends_however_it_ends(
    registry: Registry, status: TaskStatus, *, began: bool
) -> None:
    """S26, S37"""
    await create(registry)
    await provisioning(registry, a_task("t-other"))
    if began:
        await registry.tasks.begin("t-1")
    ended = await registry.tasks.finish("t-1", TaskOutcome(status=status, error="as it is"))
    assert (await registry.task_env.find("t-1") is None) is ended
    assert ended or (status is TaskStatus.COMPLETED and not began)
