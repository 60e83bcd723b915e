"""What a run's events look like as a session's output."""

from typing import Any

import pytest

from activities.harness_client import HarnessEvent
from activities.harness_output import Transcript, summary_of, waits_for


def event(kind: str, **payload: Any) -> HarnessEvent:
    return HarnessEvent(id="run_x:0", type=kind, payload=payload)


def text_of(*events: HarnessEvent) -> str:
    transcript = Transcript()
    return "".join(transcript.add(one) for one in events)


def test_a_run_reads_as_what_was_said_and_done() -> None:
    assert (
        text_of(
            event("run.started", prompt="x"),
            event("run.step.started", step=1),
            event("assistant.message.delta", content="I will "),
            event("assistant.message.delta", content="look."),
            event("tool.call.started", tool="bash", arguments='{"command":\n "ls"}', call_id="c1"),
            event("tool.output.delta", content="README", call_id="c1"),
            event("tool.call.completed", tool="bash", output="README", call_id="c1"),
            event("tool.call.started", tool="read", arguments="{}", call_id="c2"),
            event("tool.call.completed", tool="read", error="no such file", output="{}", call_id="c2"),
            event("tool.call.started", tool="think", arguments="", call_id="c3"),
            event("tool.call.completed", tool="think", output="x" * 3000, call_id="c3"),
            event("llm.request.snapshot", messages=["secret"]),
            event("run.step.started", step=2),
            event("assistant.message", content="Done."),
            event("run.completed", output="Done."),
        )
        == 'I will look.\n[bash] {"command": "ls"}\nREADME\n[read] {}\n[read] failed: no such file\n[think] \n'
        + "x" * 2000
        + "… (3000 characters)\nDone.\n"
    )


def test_an_answer_that_was_streamed_is_not_said_twice_and_one_that_no_message_carried_is_said() -> None:
    streamed = (event("assistant.message.delta", content="Hi"), event("assistant.message", content="Hi"))
    assert text_of(*streamed, event("run.completed", output="Hi")) == "Hi\n"
    assert text_of(event("run.completed", output="Hi")) == "Hi\n"
    assert text_of(event("run.failed", error="no\nmoney")) == "[failed] no money\n"


def test_the_same_events_give_the_same_text_wherever_they_are_cut() -> None:
    events = [event("assistant.message.delta", content=part) for part in ("a", "b\n", "c")]
    whole = Transcript()
    assert "".join(whole.add(one) for one in events) == text_of(*events)


@pytest.mark.parametrize(
    ("one", "waiting"),
    [
        (
            event("run.waiting_for_user", questions=[{"question": "Which?"}, {"question": "Why?"}]),
            "waiting_for_user: Which?; Why?",
        ),
        (event("run.waiting_for_user", questions=None), "waiting_for_user"),
        (event("tool.approval_required", tool="bash", arguments="{}"), "waiting_for_approval: bash {}"),
        (event("run.resumed"), ""),
        (event("tool.approval_denied"), ""),
        (event("run.step.started"), None),
    ],
)
def test_what_a_run_waits_for_is_said_in_words(one: HarnessEvent, waiting: str | None) -> None:
    assert waits_for(one) == waiting


def test_a_summary_is_the_last_line_that_says_something() -> None:
    assert summary_of("first\n\n last \n\n") == "last"
    assert summary_of(" \n") == ""
    assert len(summary_of("x" * 1000)) == 500
