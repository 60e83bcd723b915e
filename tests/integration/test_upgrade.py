"""A registry of every earlier release is brought to this one's schema, and all of it is still there."""

from pathlib import Path

import psycopg
import pytest

from messages.statuses import SessionStatus, TaskStatus, WorkspaceStatus
from messages.tasks import TaskOutcome
from store.registry import Registry
from store.schema import MIGRATIONS, check_schema, migrate
from tests.support.records import rows
from tests.support.releases import RELEASES, restore

TASKS = {
    "changed": TaskStatus.COMPLETED,
    "bundled": TaskStatus.COMPLETED,
    "unchanged": TaskStatus.COMPLETED,
    "failed": TaskStatus.FAILED,
    "unready": TaskStatus.FAILED,
    "cancelled": TaskStatus.CANCELLED,
    "queued": TaskStatus.QUEUED,
}


@pytest.fixture(params=RELEASES, ids=lambda release: release.name)
def url(request: pytest.FixtureRequest, database_url: str) -> str:
    """A database as that release left it."""
    release: Path = request.param
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    restore(release, database_url)
    return database_url


def test_there_is_a_registry_of_the_first_release() -> None:
    assert RELEASES[0].name == "0.1.0"


async def test_what_an_earlier_release_recorded_is_listed_and_shown(url: str) -> None:
    with psycopg.connect(url) as connection:
        before = {str(name) for (name,) in connection.execute("SELECT name FROM schema_migrations")}
    applied = migrate(url)
    assert applied == [name for name in sorted(file.stem for file in MIGRATIONS.glob("*.sql")) if name not in before]
    check_schema(url)

    async with Registry.connect(url) as registry:
        listed = await registry.tasks.list()
        assert {task.id: task.status for task in listed.tasks} == TASKS
        views = {task: await registry.tasks.get(task) for task in TASKS}
        assert all(view and view.prompt and view.env_names == [] for view in views.values())
        for task, view in views.items():
            events = await registry.tasks.events(task)
            assert view
            assert events[-1].current == view.status
            assert (view.session is None) is (task in {"unready", "queued"})
            assert view.workspace is None or view.workspace.status is WorkspaceStatus.REMOVED
        [unready] = [view for view in views.values() if view and view.failure]
        assert unready.id == "unready"
        assert unready.workspace
        assert [entry.detail for entry in unready.workspace.boot_log if entry.detail] == ["no compiler here\n"]


async def test_output_and_changes_of_an_earlier_release_are_read(url: str) -> None:
    migrate(url)
    async with Registry.connect(url) as registry:
        said = {}
        for task in TASKS:
            view = await registry.tasks.get(task)
            assert view
            if view.session:
                assert view.session.status is not SessionStatus.RUNNING
                said[task] = (await registry.sessions.read_output(task)).data.decode()
                assert len(said[task].encode()) == view.session.output_bytes
        assert said == {
            "changed": "working\n",
            "bundled": "bundling\n",
            "unchanged": "no newline é",
            "failed": "it breaks\n",
            "cancelled": "begun\n",
        }
        patch, bundle = await registry.results.patch("changed"), await registry.results.bundle("bundled")
        assert patch is not None
        assert b"+one" in patch
        assert bundle is not None
        assert bundle.startswith(b"# v2 git bundle")
        assert await registry.results.patch("unchanged") is None


async def test_what_an_earlier_release_left_undone_goes_on(url: str) -> None:
    """S48: a stored callback is delivered, a task that was never started can be started, or cancelled."""
    migrate(url)
    async with Registry.connect(url) as registry:
        [stored] = await registry.callbacks.undelivered()
        assert (stored.signal, stored.workspace_id, stored.payload["attempt"]) == ("workspace_ready", "w-queued", 1)
        await registry.callbacks.delivered(stored.id)
        assert await registry.callbacks.undelivered() == []
        found = await registry.tasks.find_submitted("queued", digest="of the request", idempotency_key="a-key")
        assert found is not None
        assert (found.status, found.task.env_names) == (TaskStatus.QUEUED, ())
        assert await registry.tasks.begin("queued")
        outcome = TaskOutcome(status=TaskStatus.CANCELLED, error="not wanted any more")
        assert await registry.tasks.finish("queued", outcome)
        assert await rows(registry, "task_env") == []
