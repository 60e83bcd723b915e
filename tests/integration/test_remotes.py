"""What a remote has is found out quickly, and what goes wrong with it is said in words that help."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from activities import remotes
from activities.errors import ActivityFailure, InvalidTask, RepositoryUnreachable, UnknownHost
from activities.remotes import Remote, remote_environment
from tests.support.git_remotes import (
    PASSWORD,
    GitServer,
    commit,
    credential_helper,
    make_remote,
    plain_environment,
    stand_in_ssh,
)
from tests.support.git_repositories import git, make_repository


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    repository = make_repository(tmp_path / "repository")
    git(repository, "tag", "-a", "v1", "-m", "first")
    commit(repository, "second.txt")
    git(repository, "tag", "light")
    make_remote(repository, tmp_path / "remotes/app.git")
    with GitServer(tmp_path / "remotes").serving() as server:
        yield server


def addresses(server: GitServer, folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    return {
        "http": (f"{server.url}/app.git", {}),
        "file": (f"file://{server.root}/app.git", {}),
        "ssh": (f"ssh://git@example.org{server.root}/app.git", stand_in_ssh(folder)),
        "scp": (f"git@example.org:{server.root}/app.git", stand_in_ssh(folder)),
    }


@pytest.mark.parametrize("transport", ["http", "file", "ssh", "scp"])
async def test_every_kind_of_ref_leads_to_its_commit(server: GitServer, tmp_path: Path, transport: str) -> None:
    url, env = addresses(server, tmp_path)[transport]
    remote = Remote(url, plain_environment(tmp_path / "home", **env))
    main, other = (git(server.root / "app.git", "rev-parse", ref) for ref in ("main", "other"))
    for ref in (None, "main", "light", "refs/heads/main", "heads/main", "tags/light"):
        assert await remote.resolve(ref) == main, ref
    for ref in ("other", "v1", "refs/tags/v1"):
        assert await remote.resolve(ref) == other, ref
    assert await remote.default_branch() == "main"
    with pytest.raises(InvalidTask, match=r"has no branch or tag 'mian'; it has main \(") as unknown:
        await remote.resolve("mian")
    assert not unknown.value.retryable
    if transport in {"ssh", "scp"}:
        assert "git-upload-pack" in (tmp_path / "ssh.log").read_text()


async def test_a_full_commit_is_believed_without_asking(server: GitServer, tmp_path: Path) -> None:
    remote = Remote(f"{server.url}/app.git", plain_environment(tmp_path / "home"))
    assert await remote.resolve("A" * 40) == "a" * 40
    assert server.requests == []


async def test_an_empty_repository_is_told_from_one_whose_head_is_wrong(server: GitServer, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--bare", str(server.root / "empty.git"))
    empty = Remote(f"{server.url}/empty.git", plain_environment(tmp_path / "home"))
    for ref in (None, "main"):
        with pytest.raises(InvalidTask, match="no commit yet"):
            await empty.resolve(ref)
    git(server.root / "app.git", "symbolic-ref", "HEAD", "refs/heads/gone")
    with pytest.raises(InvalidTask, match=r"HEAD of .* names no branch that it has; name a ref .main, other"):
        await Remote(f"{server.url}/app.git", plain_environment(tmp_path / "home")).resolve(None)


async def failure(url: str, tmp_path: Path, **env: str) -> ActivityFailure:
    with pytest.raises(ActivityFailure) as failed:
        await Remote(url, plain_environment(tmp_path / "home", **env)).resolve("main")
    assert "\n" not in str(failed.value)
    assert PASSWORD not in str(failed.value)
    return failed.value


async def test_what_will_not_get_better_is_not_tried_again(server: GitServer, tmp_path: Path) -> None:
    """S25, S37"""
    missing = await failure(f"{server.url}/none.git", tmp_path)
    assert isinstance(missing, InvalidTask)
    assert "there is no git repository at" in str(missing)
    (tmp_path / "plain").mkdir()
    for url in (f"file://{tmp_path}/plain", f"file://{tmp_path}/none"):
        assert "there is no git repository at" in str(await failure(url, tmp_path))
    denied = await failure(
        "ssh://git@example.org/x", tmp_path, GIT_SSH_COMMAND="echo 'git@h: Permission denied (publickey).' >&2; false"
    )
    assert isinstance(denied, InvalidTask)
    assert "does not let us in" in str(denied)
    unknown_key = "echo 'Host key verification failed.' >&2; false"
    assert "host key" in str(await failure("ssh://git@example.org/x", tmp_path, GIT_SSH_COMMAND=unknown_key))
    server.password = PASSWORD
    without = await failure(f"{server.url}/app.git", tmp_path)
    wrong = await failure(f"{server.url}/app.git", tmp_path, **credential_helper("wrong"))
    for refused in (without, wrong):
        assert isinstance(refused, InvalidTask)
        assert "does not let us in" in str(refused)
        assert "credential helper" in str(refused)
    right = Remote(f"{server.url}/app.git", plain_environment(tmp_path / "home", **credential_helper(PASSWORD)))
    assert await right.resolve("main")


async def test_what_may_get_better_is_tried_again(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S27"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = await failure(f"http://127.0.0.1:{free.getsockname()[1]}/x", tmp_path)
    assert isinstance(refused, RepositoryUnreachable)
    assert "cannot be reached" in str(refused)
    assert " ms" not in str(refused), "a reason that reads otherwise with every try is told with every try"
    server.broken = True
    broken = await failure(f"{server.url}/app.git", tmp_path)
    assert isinstance(broken, RepositoryUnreachable)
    server.broken, server.silent = False, True
    monkeypatch.setattr(remotes, "LIST_SECONDS", 0.5)
    begun = time.monotonic()
    hanging = await failure(f"{server.url}/app.git", tmp_path)
    assert time.monotonic() - begun < 10
    assert isinstance(hanging, RepositoryUnreachable)
    assert "did not answer within 0.5 s" in str(hanging)


@pytest.mark.parametrize("url", ["https://host.invalid/x", "ssh://git@host.invalid/x"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [(socket.EAI_NONAME, UnknownHost), (socket.EAI_AGAIN, RepositoryUnreachable)],
    ids=["there is none", "the resolver is away"],
)
async def test_a_name_that_is_mistyped_is_told_from_a_network_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, answer: int, kind: type[ActivityFailure]
) -> None:
    """S27"""

    def resolve(host: str, *_: object, **__: object) -> NoReturn:
        assert host == "host.invalid"
        raise socket.gaierror(answer, "as the resolver says")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    unknown = await failure(url, tmp_path)
    assert type(unknown) is kind
    assert "host of host.invalid/x is not known" in str(unknown)


async def test_no_configuration_makes_git_start_a_program_in_place_of_a_transport(tmp_path: Path) -> None:
    """S37"""
    settings = {
        "protocol.ext.allow": "always",
        f"url.ext::sh -c touch% {tmp_path}/started% .insteadOf": "https://example.org/",
    }
    env = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    refused = await failure("https://example.org/x", tmp_path, **env)
    assert "transport 'ext' not allowed" in str(refused)
    assert isinstance(refused, InvalidTask)
    assert not (tmp_path / "started").exists()


def test_git_is_given_what_it_needs_and_nothing_that_leads_it_astray() -> None:
    """S37"""
    kept = {
        "PATH": "/b", "HOME": "/h", "GH_TOKEN": "t", "SSH_AUTH_SOCK": "/s", "GIT_ASKPASS": "/a", "GIT_SSH_COMMAND": "s",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "k", "GIT_CONFIG_VALUE_0": "v", "GIT_SSL_CAINFO": "/c",
    }  # fmt: skip
    dropped = {
        "GIT_DIR": "/r", "GIT_CONFIG_PARAMETERS": "'a=b'", "GIT_TRACE": "1", "GIT_EXEC_PATH": "/x", "DISPLAY": ":0",
        "SSH_ASKPASS": "/x", "TASKRUNNER_DATABASE_URL": "u", "GIT_PROXY_COMMAND": "x", "GIT_ALLOW_PROTOCOL": "ext",
    }  # fmt: skip
    assert remote_environment({**kept, **dropped}) == kept
