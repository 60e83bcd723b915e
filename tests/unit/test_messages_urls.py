"""Addresses are shown without what opens them."""

import pytest

from messages.urls import without_user_info


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:8070/x", "http://host:8070/x"),
        ("HTTPS://hunter2@host", "HTTPS://host"),
        ("http://me:hunt@er2@host", "http://host"),
        ("postgresql://me:hunter2@/name?host=/run", "postgresql:///name?host=/run"),
        ("me:hunter2@temporal:7233", "temporal:7233"),
        ("fatal: 'https://me:hunter2@host/a.git/' and ssh://hunter2@b/c", "fatal: 'https://host/a.git/' and ssh://b/c"),
        ("git@host:a/b.git", "git@host:a/b.git"),
        ("https://host/@scope/a", "https://host/@scope/a"),
        ("http://host?a=b@c", "http://host?a=b@c"),
        ("127.0.0.1:7233", "127.0.0.1:7233"),
        ("", ""),
    ],
)
def test_user_and_password_are_taken_out_of_addresses(text: str, shown: str) -> None:
    """S37."""
    assert without_user_info(text) == shown
