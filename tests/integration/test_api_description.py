"""``/openapi.json``: programs are made from it, so it has to say all that is answered."""

from typing import Any

from tests.support.api import RunningApi

pytest_plugins = ["tests.support.temporal", "tests.support.api"]

JSON = "application/json"
CALLBACKS = "/api/workspaces/{workspace_id}"

ANSWERS: dict[tuple[str, str], dict[str, set[str]]] = {
    ("get", "/healthz"): {"200": {JSON}},
    ("get", "/readyz"): {"200": {JSON}, "503": {JSON}},
    ("get", "/metrics"): {"200": {"text/plain"}},
    ("post", f"{CALLBACKS}/ready"): {"200": {JSON}, "202": {JSON}},
    ("post", f"{CALLBACKS}/provisioning-failed"): {"200": {JSON}, "202": {JSON}},
    ("post", f"{CALLBACKS}/boot-log"): {"202": {JSON}},
    ("post", f"{CALLBACKS}/heartbeat"): {"200": {JSON}},
    ("post", f"{CALLBACKS}/sessions/{{session_id}}/output"): {"202": {JSON}},
    ("post", f"{CALLBACKS}/sessions/{{session_id}}/finished"): {"200": {JSON}, "202": {JSON}},
    ("post", "/api/tasks"): {"200": {JSON}, "201": {JSON}},
    ("get", "/api/tasks"): {"200": {JSON}},
    ("get", "/api/tasks/{task_id}"): {"200": {JSON}},
    ("get", "/api/tasks/{task_id}/events"): {"200": {"text/event-stream"}, "204": set()},
    ("get", "/api/tasks/{task_id}/logs"): {"200": {"text/plain"}},
    ("get", "/api/tasks/{task_id}/boot-log"): {"200": {"application/x-ndjson"}},
    ("get", "/api/tasks/{task_id}/diff"): {"200": {"text/x-diff"}},
    ("get", "/api/tasks/{task_id}/bundle"): {"200": {"application/x-git-bundle"}},
    ("get", "/api/tasks/{task_id}/progress"): {"200": {JSON}},
    ("post", "/api/tasks/{task_id}/cancel"): {"202": {JSON}},
    ("get", "/api/workspaces"): {"200": {JSON}},
    ("get", "/api/workspaces/{workspace_id}"): {"200": {JSON}},
    ("get", "/api/templates"): {"200": {JSON}},
    ("get", "/api/templates/{name}"): {"200": {JSON}},
}
"""What each route answers where all is well, and in which type of content, as docs/reference/http.md says it."""


async def test_every_answer_is_described_with_its_type_of_content_and_its_fields(api: RunningApi) -> None:
    document = (await api.anyone.get("/openapi.json")).json()
    described: dict[tuple[str, str], dict[str, set[str]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses: dict[str, Any] = operation["responses"]
            assert set(responses.pop("default")["content"]) == {"application/problem+json"}, (method, path)
            described[method, path] = {status: set(answer.get("content", {})) for status, answer in responses.items()}
            for status, answer in responses.items():
                assert answer["description"], (method, path, status)
                for kind, content in answer.get("content", {}).items():
                    _has_fields(document, content["schema"], kind, (method, path, status))
    assert described == ANSWERS
    problem = document["components"]["schemas"]["ProblemBody"]["properties"]
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "errors", "expected_offset", "task_id"}


def _has_fields(document: dict[str, Any], schema: dict[str, Any], kind: str, where: tuple[str, str, str]) -> None:
    if kind != JSON:
        assert schema["type"] == "string", where
        return
    model = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert model["properties"], where
