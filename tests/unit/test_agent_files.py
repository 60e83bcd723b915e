"""What the workspace agent writes down is without what opens doors."""

import pytest

from agent.files import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fetching https://me:hunter2@host/a.git", "fetching https://***@host/a.git"),
        ("fatal: 'https://me:hunt@er2@host/a.git'", "fatal: 'https://***@host/a.git'"),
        ("ssh://hunter2@a/b and git://c/@d", "ssh://***@a/b and git://c/@d"),
        ("http://host?a=b@c", "http://host?a=b@c"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_users_and_passwords_of_urls_are_left_out(text: str, shown: str) -> None:
    """S37."""
    assert without_credentials(text) == shown
