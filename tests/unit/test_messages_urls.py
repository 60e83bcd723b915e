"""Addresses are shown without what opens them, and those of this machine are known."""

import pytest

from messages.urls import is_loopback, is_loopback_host, without_user_info


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


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8070",
        "http://127.255.0.1/x",
        "https://localhost",
        "HTTP://LOCALHOST:1",
        "tcp://[::1]:2375",
        "http://me:hunter2@localhost/",
    ],
)
def test_an_address_of_this_machine_is_known(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://0.0.0.0:8070",
        "http://[::]:8070",
        "http://128.0.0.1",
        "http://127.0.0.1@tasks.example.org",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://tasks.example.org/localhost",
        "http://tasks.example.org?@localhost",
        "http://tasks.example.org#@127.0.0.1",
        "localhost:8070",
        "http://[::1",
        "http://",
        "",
    ],
)
def test_what_may_be_another_machine_is_not_taken_for_this_one(url: str) -> None:
    """S37: a secret of this machine is told to it alone, so that a doubt counts as another one."""
    assert not is_loopback(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_a_host_of_this_machine_is_known(host: str) -> None:
    assert is_loopback_host(host)
    assert not is_loopback_host(f"{host}.example.org")
