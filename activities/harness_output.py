"""A harness's events as text: what a session's output shows of a run.

The same events give the same text, byte for byte, so that who follows a run anew finds where the stored output ends.
"""

import json
from typing import Any, cast

from activities.harness_client import HarnessEvent

_ARGUMENT_CHARS = 200
_TOOL_OUTPUT_CHARS = 2000
_TEXT_CHARS = 2000


class Transcript:
    """Turns one run's events into text, in their order."""

    def __init__(self) -> None:
        self._at_line_start = True
        self._has_answer = False
        self._streamed = False
        self._tools_streamed: set[str] = set()

    def add(self, event: HarnessEvent) -> str:
        """Return the text that ``event`` adds."""
        payload = event.payload
        match event.type:
            case "run.step.started" | "llm.turn.requested":
                self._streamed = False
                return ""
            case "assistant.message.delta":
                self._streamed = self._has_answer = True
                return self._raw(_text(payload, "content"))
            case "assistant.message":
                if self._streamed:
                    return self._line("")
                self._has_answer = True
                return self._line(_text(payload, "content"))
            case "tool.call.started":
                return self._line(
                    f"[{_text(payload, 'tool')}] {_shorten(_text(payload, 'arguments'), _ARGUMENT_CHARS)}"
                )
            case "tool.output.delta":
                self._tools_streamed.add(_text(payload, "call_id"))
                return self._raw(_text(payload, "content"))
            case "tool.call.completed":
                return self._tool_ended(payload)
            case "run.completed":
                # An answer that no message carried is not lost.
                return self._line("" if self._has_answer else _text(payload, "output"))
            case "run.failed":
                return self._line(f"[failed] {_shorten(_text(payload, 'error'), _TEXT_CHARS)}")
            case _:
                waiting = waits_for(event)
                return self._line(f"[{waiting}]") if waiting else ""

    def _tool_ended(self, payload: dict[str, Any]) -> str:
        tool = _text(payload, "tool")
        if error := _text(payload, "error"):
            return self._line(f"[{tool}] failed: {_shorten(error, _TEXT_CHARS)}")
        if _text(payload, "call_id") in self._tools_streamed:
            return self._line("")
        output = _text(payload, "output")
        cut = output[:_TOOL_OUTPUT_CHARS]
        return self._line(cut if cut == output else f"{cut}… ({len(output)} characters)")

    def _raw(self, text: str) -> str:
        if text:
            self._at_line_start = text.endswith("\n")
        return text

    def _line(self, text: str) -> str:
        """Return ``text`` as lines of its own; without one, the end of the line that is open."""
        start = "" if self._at_line_start else "\n"
        self._at_line_start = True
        if not text:
            return start
        return f"{start}{text}" + ("" if text.endswith("\n") else "\n")


def waits_for(event: HarnessEvent) -> str | None:
    """Return what the run waits for from this event on, in words; empty: it goes on; None: nothing changes."""
    payload = event.payload
    match event.type:
        case "run.waiting_for_user":
            return f"waiting_for_user: {_shorten(_question(payload), _TEXT_CHARS)}".removesuffix(": ")
        case "tool.approval_required":
            what = f"{_text(payload, 'tool')} {_text(payload, 'arguments')}"
            return f"waiting_for_approval: {_shorten(what, _ARGUMENT_CHARS)}".removesuffix(": ")
        case "run.resumed" | "tool.approval_granted" | "tool.approval_denied":
            return ""
        case _:
            return None


def summary_of(output: str) -> str:
    """Return the last line of a run's answer that is not blank, 500 characters at most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return _shorten(lines[-1], 500) if lines else ""


def _question(payload: dict[str, Any]) -> str:
    questions = payload.get("questions")
    found = cast("list[Any]", questions) if isinstance(questions, list) else []
    return "; ".join(str(cast("dict[str, Any]", one).get("question") or "") for one in found if isinstance(one, dict))


def _text(payload: dict[str, Any], key: str) -> str:
    value = payload.get(key)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _shorten(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
