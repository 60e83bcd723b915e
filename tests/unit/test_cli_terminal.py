"""Who gets colours, and who a display that changes in place."""

import os
import pty

import pytest

from cli.terminal import can_redraw, wants_colours

_VARIABLES = ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "TERM", "CI")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, None),
        ({"TERM": "xterm"}, None),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"FORCE_COLOR": "3"}, True),
        ({"FORCE_COLOR": "0"}, None),
        ({"CLICOLOR_FORCE": "1", "TERM": "dumb"}, True),
        ({"CLICOLOR": "0"}, False),
    ],
)
def test_colours_follow_the_users_variables(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], wanted: bool | None
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wants_colours() is wanted


@pytest.mark.parametrize(
    ("env", "can"),
    [({"TERM": "xterm"}, True), ({}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "CI": "true"}, False)],
)
def test_only_a_person_at_a_terminal_gets_lines_that_change(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], can: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        assert can_redraw(terminal) is can
    os.close(master)
    with open(os.devnull, "w") as file:  # noqa: PTH123
        assert not can_redraw(file)
