"""The section ``container`` of a template."""

from typing import Any

import pytest
from pydantic import ValidationError

from messages.statuses import BackendKind, Readiness
from messages.templates import Template
from messages.validation import first_violation


def template(container: dict[str, Any] | None = None, **content: Any) -> Template:
    return Template(name="x", backend=BackendKind.CONTAINER, container=container, **content)


def violation(container: dict[str, Any] | None, **content: Any) -> str:
    with pytest.raises(ValidationError) as failed:
        template(container, **content)
    return str(first_violation(failed.value))


def test_an_image_is_all_that_it_needs() -> None:
    found = template({"image": "python:3.13"})
    assert found.effective_readiness is Readiness.CALLBACK
    assert found.container
    assert (found.container.publish, found.container.pids, found.container.memory) == ("127.0.0.1", 4096, None)


def test_an_image_without_our_agent_is_probed() -> None:
    found = template({"image": "x", "workspace_agent": "none", "port": 8080}, agent={"kind": "harnessd"})
    assert found.effective_readiness is Readiness.PROBE


def test_memory_may_be_a_number() -> None:
    found = template({"image": "x", "memory": 268435456})
    assert found.container
    assert found.container.memory == "268435456"


def test_what_is_stored_is_read_again() -> None:
    found = template({"image": "x", "publish": "0.0.0.0", "network": "mine", "cpus": 1.5})
    assert Template.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("container", "content", "text"),
    [
        (None, {}, "backend container needs the key container with an image"),
        ({"image": "x", "memori": "1g"}, {}, "unknown key 'memori'; did you mean 'memory'?"),
        ({"image": "x", "memory": "lots"}, {}, "memory"),
        ({"image": "x y"}, {}, "image"),
        ({"image": "x", "network": "host"}, {}, "network 'host' publishes no port"),
        ({"image": "x", "command": ["y"]}, {}, "command cannot be set where our agent is mounted"),
        ({"image": "x", "workspace_agent": "none"}, {}, "give both or neither"),
        ({"image": "x", "port": 80}, {}, "give both or neither"),
        ({"image": "x", "publish": "here"}, {}, "publish"),
        ({"image": "x"}, {"readiness": "immediate"}, "readiness 'immediate' is not for containers"),
        ({"image": "x"}, {"agent": {"kind": "harnessd"}}, "needs the command that starts it"),
        (
            {"image": "x", "workspace_agent": "none", "port": 80},
            {"agent": {"kind": "harnessd", "command": ["x"]}},
            "nobody could start command",
        ),
        ({"image": "x", "workspace_agent": "none", "port": 80}, {}, "an image without our agent needs agent: {kind: h"),
        (
            {"image": "x", "workspace_agent": "none", "port": 80},
            {"agent": {"kind": "harnessd"}, "readiness": "callback"},
            "needs readiness: probe",
        ),
        (
            {"image": "x", "workspace_agent": "none", "port": 80},
            {"agent": {"kind": "harnessd", "token_env": "TOKEN"}, "required_env": ["TOKEN", "A_KEY"]},
            "required_env: without our agent in the image nobody could give A_KEY to what runs there",
        ),
    ],
)
def test_what_cannot_be_is_refused(container: dict[str, Any] | None, content: dict[str, Any], text: str) -> None:
    assert text in violation(container, **content)
