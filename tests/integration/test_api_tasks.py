"""The task API over a real socket: submitting, looking, cancelling."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from api import workflows_client
from api.templates import TemplateFolder
from messages.keys import Keyring
from messages.names import (
    TASK_QUEUE,
    host_task_queue,
    is_id,
    task_workflow_id,
)
from messages.sealed import SealedEnv, open_env
from messages.search_attributes import TASK_STATUS, TASK_STEP, WORKSPACE_BACKEND, WORKSPACE_ID
from messages.statuses import BackendKind, TaskStatus
from messages.tasks import SavedResult, TaskInput, TaskOutcome
from messages.templates import Template
from store.registry import Registry
from tests.support.api import API_TOKEN, HOST_ID, RunningApi, serving, unique
from tests.support.records import put, rows

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

LOCAL = {"prompt": "echo hello\nsecond line", "backend": "local"}
LOCAL_TEMPLATE = Template(name="local", backend=BackendKind.LOCAL)


@activity.defn
async def nothing() -> None:
    """Gives a host's worker something to poll for."""


@pytest.fixture
async def host(temporal: Client) -> AsyncIterator[str]:
    """A host with a worker."""
    name = unique("host")
    async with Worker(temporal, task_queue=host_task_queue(name), activities=[nothing]):
        yield name


async def test_a_submitted_task_is_recorded_and_its_workflow_started(api: RunningApi) -> None:
    answer = await api.user.post("/api/tasks", json=LOCAL | {"timeout": "2m"})
    assert answer.status_code == 201
    view = answer.json()
    assert answer.headers["location"] == f"/api/tasks/{view['id']}"
    assert is_id(view["id"])
    assert (view["status"], view["backend"], view["template"], view["prompt"]) == (
        "queued",
        "local",
        "local",
        LOCAL["prompt"],
    )
    assert view["ui_url"] == f"http://127.0.0.1:8233/namespaces/default/workflows/task-{view['id']}"
    workflow = api.temporal.get_workflow_handle(task_workflow_id(view["id"]))
    description = await workflow.describe()
    assert (description.workflow_type, description.task_queue) == ("TaskRunner", TASK_QUEUE)
    attributes = description.typed_search_attributes
    assert attributes[TASK_STATUS] == "running"
    assert attributes[TASK_STEP] == "provisioning", (
        "its preflight is tried by the workflow's worker, for a second at most"
    )
    assert attributes[WORKSPACE_BACKEND] == "local"
    assert attributes[WORKSPACE_ID] == view["workspace_id"]
    assert await description.static_summary() == "echo hello"
    assert view["workspace_id"] in (await description.static_details() or "")
    history = await workflow.fetch_history()
    payloads = history.events[0].workflow_execution_started_event_attributes.input.payloads
    (task,) = await api.temporal.data_converter.decode(list(payloads), [TaskInput])
    assert (task.task_id, task.workspace_id) == (view["id"], view["workspace_id"])
    assert task.template.session_timeout.total_seconds() == 120


async def test_two_creates_at_the_same_moment_are_one_task(api: RunningApi) -> None:
    """S20: one created, the same answer to both, one workflow run."""
    for _ in range(5):
        body = LOCAL | {"id": unique("t")}
        answers = await asyncio.gather(*(api.user.post("/api/tasks", json=body) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
        first, *others = (answer.json() for answer in answers)
        assert others == [first] * 3
        workflow = api.temporal.get_workflow_handle(task_workflow_id(body["id"]))
        events = [event.event_type async for event in workflow.fetch_history_events()]
        assert events.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED) == 1


async def test_another_spec_under_the_same_id_is_a_conflict(api: RunningApi) -> None:
    """S20."""
    body = LOCAL | {"id": unique("t")}
    assert (await api.user.post("/api/tasks", json=body)).status_code == 201
    assert (await api.user.post("/api/tasks", json=dict(reversed(body.items())))).status_code == 200
    answer = await api.user.post("/api/tasks", json=body | {"prompt": "other"})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["id"] in answer.json()["detail"]
    assert (await api.user.get(f"/api/tasks/{body['id']}")).json()["prompt"] == LOCAL["prompt"]


async def test_other_values_of_the_environment_are_another_request(api: RunningApi) -> None:
    """S20, S37: the values are compared, sealed, and shown nowhere; the names are."""
    spec = LOCAL | {"id": unique("t"), "env": {"B_KEY": "secret-b", "A_KEY": "secret-a"}}
    first, again = [await api.user.post("/api/tasks", json=spec) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["env_names"] == ["A_KEY", "B_KEY"]
    for env in ({"B_KEY": "secret-b", "A_KEY": "secret-c"}, {"B_KEY": "secret-b"}, {}):
        other = await api.user.post("/api/tasks", json=spec | {"env": env})
        assert other.status_code == 409
        assert "secret" not in other.text

    sealed = await api.registry.task_env.find(spec["id"])
    assert sealed is not None
    assert open_env(api.keys, spec["id"], sealed) == spec["env"]
    [row] = await rows(api.registry, "tasks")
    assert "secret" not in f"{first.text}{row}"
    history = [
        e.SerializeToString() async for e in api.temporal.get_workflow_handle(row["workflow_id"]).fetch_history_events()
    ]
    assert b"A_KEY" in b"".join(history)
    assert b"secret-" not in b"".join(history)


async def test_cancelling_a_task_that_was_never_started_deletes_its_environment(api: RunningApi) -> None:
    """S26, S37"""
    task = TaskInput(task_id=unique("t"), workspace_id=unique("w"), prompt="x", template=LOCAL_TEMPLATE)
    await api.registry.tasks.create(task, digest="d", idempotency_key=None, env=SealedEnv("k1", b"sealed"))
    assert (await api.user.post(f"/api/tasks/{task.task_id}/cancel")).status_code == 202
    assert await api.registry.task_env.find(task.task_id) is None


async def test_an_idempotency_key_stands_for_one_task(api: RunningApi) -> None:
    """S20: the same key and body, also at once: the same task; another body: 409."""
    headers = {"Idempotency-Key": unique("key")}
    answers = await asyncio.gather(*(api.user.post("/api/tasks", json=LOCAL, headers=headers) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await api.user.post("/api/tasks", json=LOCAL | {"prompt": "other"}, headers=headers)
    assert (other.status_code, other.json()["task_id"]) == (409, answers[0].json()["id"])
    assert len((await api.registry.tasks.list()).tasks) == 1
    for key in ("", "k" * 256, "a\tb"):
        answer = await api.user.post("/api/tasks", json=LOCAL, headers={"Idempotency-Key": key})
        assert (key, answer.status_code) == (key, 400)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"id": "../x"}, 400, "id"),
        ({"id": "Upper"}, 400, "id"),
        ({"id": "x" * 41}, 400, "id"),
        ({"id": ""}, 400, "id"),
        ({"id": "a\n"}, 400, "id"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": " \n"}, 400, "blank"),
        ({"prompt": "a\0b"}, 400, "NUL"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": "x" * 100_001}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"backend": "cloud"}, 400, "backend"),
        ({"backend": "vm"}, 422, "not available in this release"),
        ({"backend": "worktree"}, 422, "needs a repository"),
        ({"template": "nope"}, 422, "known: container, local, worktree"),
        ({"template": "../../etc/passwd"}, 422, "no template"),
        ({"agent": "nope"}, 422, "known: shell"),
        ({"timeout": "soon"}, 400, "not a duration"),
        ({"timeout": 5}, 400, "no unit"),
        ({"timeout": "0s"}, 422, "positive"),
        ({"ref": "main"}, 422, "without a repository"),
        ({"ref": "--upload-pack=x"}, 400, "ref"),
        ({"repository": {"url": "https://me:hunter2@example.com/x.git"}}, 400, "credential helper"),
        ({"repository": {"url": "ext::sh -c true"}}, 400, "repository.url"),
        ({"repository": {}}, 400, "repository"),
        ({"repository": {"path": "relative"}}, 400, "path"),
        ({"repository": {"path": "/a", "url": "b"}}, 400, "repository"),
        ({"unheard_of": 1}, 400, "unheard_of"),
    ],
)
async def test_what_cannot_run_is_refused_and_nothing_is_made(
    api: RunningApi, change: dict[str, Any], status: int, word: str
) -> None:
    """S13, S36: the text names what is wrong."""
    answer = await api.user.post("/api/tasks", json=LOCAL | change)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert word in answer.text
    assert (await api.registry.tasks.list()).tasks == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "x", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": NaN}',
    ],
)
async def test_bodies_that_are_no_proper_json_make_nothing(api: RunningApi, content: bytes) -> None:
    """S36."""
    answer = await api.user.post("/api/tasks", content=content)
    assert answer.status_code == 400
    assert (await api.registry.tasks.list()).tasks == []


async def test_a_body_over_a_mebibyte_is_413(api: RunningApi) -> None:
    """S36."""
    answer = await api.user.post("/api/tasks", content=b" " * (1024 * 1024 + 1))
    assert answer.status_code == 413


async def test_a_repository_on_a_host_without_a_worker_is_refused(api: RunningApi, host: str) -> None:
    """A path is of use only on its host; a path without a host is on the API's own."""
    body = {"prompt": "true", "repository": {"path": "/srv/repo"}}
    for repository, named in (
        ({"path": "/srv/repo", "host": "far-away"}, "far-away"),
        ({"path": "/srv/repo"}, HOST_ID),
    ):
        answer = await api.user.post("/api/tasks", json=body | {"repository": repository})
        assert (answer.status_code, named in answer.json()["detail"]) == (422, True)
    assert (await api.registry.tasks.list()).tasks == []
    answer = await api.user.post("/api/tasks", json=body | {"repository": {"path": "/srv/repo", "host": host}})
    assert (answer.status_code, answer.json()["backend"]) == (201, "worktree")
    assert answer.json()["repository"]["host"] == host


async def test_a_repeat_needs_no_template(registry: Registry, temporal: Client, keys: Keyring, tmp_path: Path) -> None:
    """S20: a task runs by the template as it was, which may be gone or broken by now."""
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nbackend: local\n")
    await registry.tokens.add("tests", API_TOKEN)
    async with serving(registry, temporal, keys, TemplateFolder(tmp_path)) as api:
        asked = {"prompt": "true", "template": "mine"}
        headers = {"Idempotency-Key": unique("key")}
        first = await api.user.post("/api/tasks", json=asked, headers=headers)
        assert first.status_code == 201
        file.write_text("name: [")
        repeated = await api.user.post("/api/tasks", json=asked, headers=headers)
        assert (repeated.status_code, repeated.json()["id"]) == (200, first.json()["id"])
        assert (await api.user.post("/api/tasks", json=asked)).status_code == 422


async def test_a_worker_that_starts_while_the_task_comes_in_is_found(
    api: RunningApi, temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_in_vain = asyncio.Event()

    def pauses() -> Iterator[float]:
        yield 0.0
        looked_in_vain.set()
        yield from (0.25, 0.5, 1.0)

    monkeypatch.setattr(workflows_client, "_LOOKS_FOR_A_WORKER", pauses())
    name = unique("host")
    body = {"prompt": "true", "repository": {"path": "/srv/repo", "host": name}}
    submission = asyncio.create_task(api.user.post("/api/tasks", json=body))
    await looked_in_vain.wait()
    async with Worker(temporal, task_queue=host_task_queue(name), activities=[nothing]):
        assert (await submission).status_code == 201


async def test_cancelling_a_running_task_asks_its_workflow(api: RunningApi) -> None:
    """S26: 202, any number of times."""
    task_id = (await api.user.post("/api/tasks", json=LOCAL)).json()["id"]
    for _ in range(2):
        assert (await api.user.post(f"/api/tasks/{task_id}/cancel")).status_code == 202
    workflow = api.temporal.get_workflow_handle(task_workflow_id(task_id))
    events = [event.event_type async for event in workflow.fetch_history_events()]
    assert EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED in events


async def test_cancelling_what_has_ended_or_never_was_says_so(api: RunningApi) -> None:
    task_id = (await api.user.post("/api/tasks", json=LOCAL)).json()["id"]
    await api.registry.tasks.begin(task_id)
    await api.registry.tasks.finish(task_id, TaskOutcome(status=TaskStatus.COMPLETED))
    answer = await api.user.post(f"/api/tasks/{task_id}/cancel")
    assert (answer.status_code, "completed" in answer.json()["detail"]) == (409, True)
    for unknown in ("t-unknown", "%00", "..%2Fx"):
        assert (await api.user.post(f"/api/tasks/{unknown}/cancel")).status_code == 404


async def test_a_task_whose_workflow_was_terminated_is_not_said_to_be_cancelled(api: RunningApi) -> None:
    task_id = (await api.user.post("/api/tasks", json=LOCAL)).json()["id"]
    await api.registry.tasks.begin(task_id)
    await api.temporal.get_workflow_handle(task_workflow_id(task_id)).terminate()
    answer = await api.user.post(f"/api/tasks/{task_id}/cancel")
    assert (answer.status_code, "no workflow" in answer.json()["detail"]) == (409, True)


async def test_a_closed_workflow_is_not_started_again(api: RunningApi) -> None:
    """S20: a repeat of a request whose workflow has ended starts nothing."""
    body = LOCAL | {"id": unique("t")}
    assert (await api.user.post("/api/tasks", json=body)).status_code == 201
    workflow = api.temporal.get_workflow_handle(task_workflow_id(body["id"]))
    await workflow.terminate()
    assert (await api.user.post("/api/tasks", json=body)).status_code == 200
    assert (await workflow.describe()).status is WorkflowExecutionStatus.TERMINATED


async def test_tasks_are_listed_by_page_and_filter(api: RunningApi) -> None:
    ids = [(await api.user.post("/api/tasks", json=LOCAL)).json()["id"] for _ in range(5)]
    await api.registry.tasks.begin(ids[0])
    found: list[str] = []
    cursor = ""
    while True:
        page = (await api.user.get(f"/api/tasks?status=&step=&backend=&limit=2&cursor={cursor}")).json()
        found += [task["id"] for task in page["tasks"]]
        assert len(page["tasks"]) <= 2
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == ids[::-1]
    running = (await api.user.get("/api/tasks?status=running&step=preflight&backend=local")).json()
    assert [task["id"] for task in running["tasks"]] == [ids[0]]
    assert (await api.user.get("/api/tasks?backend=worktree")).json()["tasks"] == []


async def test_records_with_parts_missing_are_shown(api: RunningApi) -> None:
    """S49: no workspace, no session, no result, no heartbeat."""
    task_id = (await api.user.post("/api/tasks", json=LOCAL)).json()["id"]
    view = (await api.user.get(f"/api/tasks/{task_id}")).json()
    assert (view["workspace"], view["session"], view["result"], view["steps"]) == (None, None, None, [])
    assert (await api.user.get("/api/workspaces")).json() == {"workspaces": []}
    workspace = await api.workspace()
    shown = (await api.user.get(f"/api/workspaces/{workspace.id}")).json()
    assert (shown["harness_url"], shown["last_heartbeat_at"], shown["boot_log"]) == (None, None, [])
    listed = (await api.user.get("/api/workspaces?status=provisioning&limit=5")).json()["workspaces"]
    assert [item["id"] for item in listed] == [workspace.id]
    assert (await api.user.get(f"/api/tasks/{workspace.task.task_id}/logs")).content == b""


async def test_a_diff_is_there_once_there_is_a_change(api: RunningApi) -> None:
    workspace = await api.workspace()
    task_id = workspace.task.task_id
    path = f"/api/tasks/{task_id}/diff"
    answer = await api.user.get(path)
    assert (answer.status_code, "still runs" in answer.json()["detail"]) == (404, True)
    result = SavedResult(
        branch=f"taskrunner/{task_id}",
        base_commit="a" * 40,
        commit="b" * 40,
        files_changed=1,
        insertions=1,
        deletions=0,
    )
    patch = b"diff --git a/x b/x\n\xff\x00binary\n"
    await api.registry.results.save(task_id, result, patch=patch, bundle=None)
    answer = await api.user.get(path)
    assert (answer.status_code, answer.content) == (200, patch)
    assert answer.headers["content-type"].startswith("text/x-diff")
    large = await api.workspace()
    await api.registry.results.save(large.task.task_id, result, patch=None, bundle=None)
    answer = await api.user.get(f"/api/tasks/{large.task.task_id}/diff")
    assert (answer.status_code, result.branch in answer.json()["detail"]) == (404, True)


async def test_a_bundle_is_there_where_the_change_is_in_one(api: RunningApi) -> None:
    """S44: and where it is not, it is told where the change is."""
    bundled, branched, unchanged, running = [await api.workspace() for _ in range(4)]
    result = SavedResult(
        branch=f"taskrunner/{bundled.task.task_id}",
        base_commit="a" * 40,
        commit="b" * 40,
        files_changed=1,
        insertions=1,
        deletions=0,
        repository_path="/srv/repo",
        bundle=True,
    )
    content = b"# v2 git bundle\n\xff\x00" * 100_000
    await api.registry.results.save(bundled.task.task_id, result, patch=None, bundle=content)
    answer = await api.user.get(f"/api/tasks/{bundled.task.task_id}/bundle")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"] == "application/x-git-bundle"
    assert answer.headers["content-disposition"] == f'attachment; filename="{bundled.task.task_id}.bundle"'
    large = (await api.user.get(f"/api/tasks/{bundled.task.task_id}/diff")).json()["detail"]
    assert f"/api/tasks/{bundled.task.task_id}/bundle" in large
    assert f"git fetch FILE {result.branch}" in large
    assert "on branch" not in large

    on_branch = result.model_copy(update={"bundle": False})
    await api.registry.results.save(branched.task.task_id, on_branch, patch=b"x", bundle=None)
    await api.registry.tasks.finish(unchanged.task.task_id, TaskOutcome(status=TaskStatus.COMPLETED))
    for workspace, *words in (
        (branched, "not in a bundle", result.branch, "/srv/repo"),
        (unchanged, "nothing was changed"),
        (running, "still runs"),
    ):
        answer = await api.user.get(f"/api/tasks/{workspace.task.task_id}/bundle")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        for word in words:
            assert word in answer.json()["detail"]
    assert (await api.user.get("/api/tasks/t-unknown/bundle")).status_code == 404


async def test_templates_are_listed_and_shown_with_their_timeout(api: RunningApi) -> None:
    listed = (await api.user.get("/api/templates")).json()
    assert [template["name"] for template in listed["templates"]] == ["container", "local", "worktree"]
    assert listed["broken"] == {}
    shown = (await api.user.get("/api/templates/worktree")).json()
    assert (shown["template"]["backend"], shown["readiness"]) == ("worktree", "immediate")
    assert (shown["provision_timeout_seconds"], shown["provision_timeout_rule"]) == (600, "default")


async def test_the_api_describes_itself(api: RunningApi) -> None:
    description = (await api.anyone.get("/openapi.json")).json()
    submit = description["paths"]["/api/tasks"]["post"]
    assert submit["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/TaskRequest")
    schemas = description["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(item) for item in value.values()))
        return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()

    assert {reference.rpartition("/")[2] for reference in references(description)} <= schemas.keys()
    assert (await api.anyone.get("/docs")).status_code == 200


async def test_a_stored_task_that_this_release_cannot_read_is_a_defect_and_no_fault_of_the_request(
    api: RunningApi,
) -> None:
    """S36: what is stored is never quoted, and a repeat is not refused as if it could not be recorded."""
    body = {"id": unique("t"), "prompt": "true"}
    assert (await api.user.post("/api/tasks", json=body)).status_code == 201
    [stored] = [row["input"] for row in await rows(api.registry, "tasks") if row["id"] == body["id"]]
    await put(api.registry, "tasks", body["id"], input='{"task_id": "of another time"}')
    answer = await api.user.post("/api/tasks", json=body)
    await put(api.registry, "tasks", body["id"], input=json.dumps(stored))
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "of another time" not in answer.text
