"""Which URLs of repositories are taken, and how they are shown."""

import pytest
from pydantic import ValidationError

from messages.repositories import parse_repository_url
from messages.tasks import Repository
from messages.validation import first_violation


@pytest.mark.parametrize(
    ("url", "shown", "public"),
    [
        ("https://github.com/a/b.git", "github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://h:8443/a%20b", "h:8443/a%20b", "https://h:8443/a%20b"),
        ("http://127.0.0.1:81/x", "127.0.0.1:81/x", "http://127.0.0.1:81/x"),
        ("http://[::1]:81/x", "[::1]:81/x", "http://[::1]:81/x"),
        ("http://localhost/x", "localhost/x", "http://localhost/x"),
        ("ssh://git@h:22/~/x", "h:22/~/x", "ssh://h:22/~/x"),
        ("git@github.com:o/r.git", "github.com/o/r.git", "github.com:o/r.git"),
        ("host:~me/r", "host/~me/r", "host:~me/r"),
        ("file:///srv/x.git", "/srv/x.git", "file:///srv/x.git"),
    ],
)
def test_what_git_can_fetch_is_taken_and_shown_without_its_user(url: str, shown: str, public: str) -> None:
    assert (parse_repository_url(url).shown, parse_repository_url(url).public) == (shown, public)
    assert Repository(url=url).is_on_host is url.startswith("file:")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://me:hunter2@h/x", "credential helper"),
        ("https://hunter2@h/x", "credential helper"),
        ("ssh://me:hunter2@h/x", "credential helper"),
        ("ssh://hunter2%3Apw@h/x", "user"),
        ("http://hunter2.example/x", "plain http"),
        ("http://127.0.0.1.hunter2/x", "plain http"),
        ("https://h/x?token=hunter2", "character"),
        ("https://h\\@hunter2/x", "character"),
        ("https://h\n/hunter2", "character"),
        ("https://h/hunter2\tx", "character"),
        ("https://h/hunter2%0ax", "character"),
        ("https://h/hunter2 x", "character"),
        ("https://h/hunter2é", "character"),
        ("ext::hunter2", "not a URL"),
        ("ext::sh -c hunter2", "character"),
        ("fd::17", "not a URL"),
        ("git://h/hunter2", "kind"),
        ("HTTPS://h/hunter2", "kind"),
        ("ext://h/hunter2", "kind"),
        ("--upload-pack=hunter2", "not a URL"),
        ("-oProxyCommand=hunter2:x", "no host"),
        ("ssh://-oProxyCommand=hunter2/x", "no host"),
        ("ssh://-l@h/hunter2", "user"),
        ("git@-hunter2:x", "no host"),
        ("-x@h:hunter2", "user|host"),
        ("h:-hunter2", "hyphen"),
        ("file://hunter2/x", "names a host"),
        ("file:///", "no repository"),
        ("https://hunter2", "no repository"),
        ("https:///hunter2", "no host"),
        ("https://h:99999/hunter2", "not a URL"),
        ("https://[h/hunter2", "not a URL"),
        ("/srv/hunter2", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_what_git_must_not_be_given_is_refused_and_never_quoted(url: str, why: str) -> None:
    """S36, S37"""
    with pytest.raises(ValidationError) as refused:
        Repository(url=url)
    violation = first_violation(refused.value)
    assert violation.field == "url"
    assert violation.text.split()[0] in {"carries", "holds", "has", "is", "names"}
    assert "hunter2" not in str(violation)
    with pytest.raises(ValueError, match=why):
        parse_repository_url(url)
