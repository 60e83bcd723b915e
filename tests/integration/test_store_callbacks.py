"""Stored callbacks, saved results and API tokens."""

import asyncio

import pytest

from messages.names import PROVISIONING_FAILED, SESSION_FINISHED, WORKSPACE_READY
from messages.statuses import EventKind
from messages.tasks import SavedResult
from store.errors import RegistryError
from store.records import Callback
from store.registry import Registry
from tests.support.records import queued, rows

RESULT = SavedResult(
    branch="taskrunner/t-1", base_commit="a" * 40, commit="b" * 40, files_changed=1, insertions=2, deletions=0
)


async def _store(
    registry: Registry, signal: str = WORKSPACE_READY, attempt: int = 1, session: str | None = None
) -> None:
    payload = {"workspace_id": "w-1", "attempt": attempt, "error": "a\0b", "n": float("inf")}
    await registry.callbacks.store(Callback("task-t-1", signal, "w-1", attempt, session, payload))


async def test_a_callback_is_stored_once_and_delivered_once(registry: Registry) -> None:
    """S48: in the order in which they came, whatever is repeated."""
    await asyncio.gather(*(_store(registry) for _ in range(5)))
    for session in ("s-1", "s-2", "s-1"):
        await _store(registry, SESSION_FINISHED, session=session)
    await _store(registry, PROVISIONING_FAILED)
    await _store(registry, attempt=2)
    stored = await registry.callbacks.undelivered()
    assert [(k.signal, k.attempt, k.session_id) for k in stored] == [
        (WORKSPACE_READY, 1, None),
        (SESSION_FINISHED, 1, "s-1"),
        (SESSION_FINISHED, 1, "s-2"),
        (PROVISIONING_FAILED, 1, None),
        (WORKSPACE_READY, 2, None),
    ]
    assert (stored[0].workflow_id, stored[0].workspace_id) == ("task-t-1", "w-1")
    assert stored[0].payload == {"workspace_id": "w-1", "attempt": 1, "error": "ab", "n": None}
    assert await registry.callbacks.find("w-1", 1) == stored[:4]
    assert await registry.callbacks.undelivered(limit=2) == stored[:2]
    await registry.callbacks.delivered(stored[0].id)
    await registry.callbacks.delivered(stored[0].id)
    await _store(registry)  # a late repeat of what was delivered
    assert await registry.callbacks.undelivered() == stored[1:]
    assert await registry.callbacks.find("w-1", 1) == stored[1:4]
    assert await registry.callbacks.find("w-other", 1) == []


async def test_a_result_is_saved_once(registry: Registry) -> None:
    """S44: the first one stands, and every byte comes back."""
    task = await queued(registry)
    patch, bundle = bytes(range(256)), bytes(reversed(range(256))) * 5000
    answers = await asyncio.gather(
        *(registry.results.save(task.task_id, RESULT, patch=patch, bundle=bundle) for _ in range(3))
    )
    assert sorted(answers) == [False, False, True]
    assert not await registry.results.save(task.task_id, RESULT, patch=b"other", bundle=None)
    assert await registry.results.patch(task.task_id) == patch
    assert await registry.results.bundle(task.task_id) == bundle
    view = await registry.tasks.get(task.task_id)
    assert view
    assert view.result == RESULT
    events = [e.detail for e in await registry.tasks.events(task.task_id) if e.kind is EventKind.RESULT_SAVED]
    assert events == [RESULT.model_dump(mode="json")]


async def test_a_result_may_lack_patch_and_bundle(registry: Registry) -> None:
    """S49."""
    task = await queued(registry)
    assert await registry.results.patch(task.task_id) is None
    assert await registry.results.save(task.task_id, RESULT, patch=None, bundle=None)
    assert await registry.results.patch(task.task_id) is None
    assert await registry.results.bundle(task.task_id) is None
    with pytest.raises(RegistryError, match="is not recorded"):
        await registry.results.save("nobody", RESULT, patch=None, bundle=None)


async def test_tokens_are_accepted_by_hash(registry: Registry) -> None:
    """S37: the token itself is stored nowhere."""
    assert not await registry.tokens.is_valid("secret-1")
    await registry.tokens.add("me", "secret-1")
    await registry.tokens.add("you", "secret-2")
    assert await registry.tokens.is_valid("secret-1")
    assert not await registry.tokens.is_valid("secret-1 ")
    assert not await registry.tokens.is_valid("")
    await registry.tokens.add("me", "secret-3")
    assert not await registry.tokens.is_valid("secret-1")
    assert await registry.tokens.is_valid("secret-2")
    assert await registry.tokens.is_valid("secret-3")
    for _ in range(2):
        await registry.tokens.remove("me")
        assert not await registry.tokens.is_valid("secret-3")
    assert await registry.tokens.is_valid("secret-2")
    assert "secret" not in str(await rows(registry, "api_tokens"))
