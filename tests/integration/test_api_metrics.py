"""What the API tells of itself: figures for Prometheus, and documentation that needs no other host."""

import re
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from temporalio.client import Client

from api.app import create_app
from api.dependencies import ApiDependencies
from api.templates import TemplateFolder
from messages.keys import Keyring
from messages.statuses import TaskStatus, Verdict
from store.registry import Registry
from tests.support.api import API_TOKEN, RunningApi, postgres_away, serving
from tests.support.temporal import DevServer

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def read(api: RunningApi) -> Figures:
    answer = await api.anyone.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(figures: Figures, name: str, **labels: str) -> float:
    return figures.get((name, frozenset(labels.items())), 0.0)


async def test_tasks_and_callbacks_and_requests_are_counted(api: RunningApi) -> None:
    workspace = await api.workspace()
    before = await read(api)
    assert value(before, "taskrunner_registry_up") == 1
    assert {status.value for status in TaskStatus} == {
        dict(labels)["status"] for name, labels in before if name == "taskrunner_tasks"
    }
    assert value(before, "taskrunner_tasks", status="running") == 1
    await api.anyone.post(f"{workspace.path}/ready", headers=workspace.headers)
    await api.anyone.post(f"{workspace.path}/ready")
    assert await api.registry.workspaces.record_verdict(workspace.id, 1, Verdict.READY)
    await api.anyone.post(f"{workspace.path}/provisioning-failed", headers=workspace.headers)
    await api.user.get(f"/api/tasks/{workspace.task.task_id}")
    await api.user.get("/no/such/place")
    await api.user.request("BREW", "/api/tasks")
    after = await read(api)

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    ready, requests = "/api/workspaces/{workspace_id}/ready", "taskrunner_http_request_seconds_count"
    assert grew("taskrunner_callbacks_total", kind="ready", answer="taken") == 1
    assert grew("taskrunner_callbacks_total", kind="ready", answer="401") == 1
    assert grew("taskrunner_callbacks_total", kind="provisioning-failed", answer="refused") == 1
    assert grew(requests, method="POST", route=ready, status="200") == 1
    assert grew(requests, method="GET", route="/api/tasks/{task_id}", status="200") == 1
    assert grew(requests, method="GET", route="other", status="404") == 1
    assert all(dict(labels).get("method") != "BREW" for _, labels in after)
    text = (await api.anyone.get("/metrics")).text
    for secret in (API_TOKEN, workspace.token, workspace.id, workspace.task.task_id):
        assert secret not in text


async def test_a_stored_callback_is_told_apart(
    registry: Registry, keys: Keyring, dev_server: DevServer, database_url: str, postgres: str
) -> None:
    """Temporal is away, then PostgreSQL too: /metrics answers all the same."""
    await dev_server.start()
    async with serving(registry, await dev_server.client(), keys) as api:
        workspace = await api.workspace()
        before = await read(api)
        await dev_server.stop()
        answer = await api.anyone.post(f"{workspace.path}/ready", headers=workspace.headers)
        assert answer.status_code == 202
        after = await read(api)
        stored = {"kind": "ready", "answer": "kept"}
        name = "taskrunner_callbacks_total"
        assert value(after, name, **stored) - value(before, name, **stored) == 1
        assert value(after, "taskrunner_callbacks_undelivered") == 1
        with postgres_away(postgres, database_url):
            away = await read(api)
        assert value(away, "taskrunner_registry_up") == 0
        assert ("taskrunner_callbacks_undelivered", frozenset()) not in away


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 401), (API_TOKEN, 200)])
async def test_beyond_loopback_a_token_is_asked_for(
    registry: Registry, temporal: Client, keys: Keyring, token: str | None, status: int
) -> None:
    await registry.tokens.add("tests", API_TOKEN)
    given = ApiDependencies(registry=registry, temporal=temporal, keys=keys, templates=TemplateFolder(), host_id="h")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    app = create_app(given, loopback=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", headers=headers) as client:
        assert (await client.get("/metrics")).status_code == status


async def test_the_documentation_loads_nothing_from_another_host(api: RunningApi) -> None:
    page = await api.anyone.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"https?://", page.text)
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(links) == 3  # style, script, icon
    for link in [*links, "/openapi.json"]:
        url = urljoin(f"{api.url}/docs", link)
        assert urlsplit(url).netloc == urlsplit(api.url).netloc
        answer = await api.anyone.get(url)
        assert answer.status_code == 200, url
        assert len(answer.content) > 500
