"""Where the Temporal CLI comes from, in which order."""

import os
from pathlib import Path

import pytest

from workers.errors import StackError
from workers.temporal_binary import GO_PACKAGE, cache_folder, find_temporal, obtain_temporal


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the CLI, without a network, and with an empty PATH; returns the only folder on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return tools


def make_program(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_named_one_wins_over_path_and_path_over_the_cache(tmp_path: Path, nothing_there: Path) -> None:
    assert find_temporal(None) is None
    cached = make_program(cache_folder() / "temporal")
    assert find_temporal(None) == cached
    on_path = make_program(nothing_there / "temporal")
    assert find_temporal(None) == on_path
    named = make_program(tmp_path / "named")
    assert find_temporal(named) == named


def test_a_named_one_that_is_none_is_not_replaced(tmp_path: Path, nothing_there: Path) -> None:
    make_program(nothing_there / "temporal")
    plain = make_program(tmp_path / "plain")
    plain.chmod(0o644)
    for path in (tmp_path / "missing", tmp_path, plain):
        with pytest.raises(StackError, match="TASKRUNNER_TEMPORAL_BIN"):
            find_temporal(path)


async def test_where_the_download_fails_it_is_built_with_go_and_kept(nothing_there: Path) -> None:
    make_program(nothing_there / "go", f'test "$2" = {GO_PACKAGE} && printf "#!/bin/sh\\n" > "$GOBIN/temporal"')
    said: list[str] = []
    program = await obtain_temporal(None, said.append)
    assert program == cache_folder() / "temporal"
    assert os.access(program, os.X_OK)
    assert any("go install" in line for line in said)
    (nothing_there / "go").unlink()
    assert await obtain_temporal(None, said.append) == program
    assert sorted(path.name for path in cache_folder().iterdir()) == [".lock", "temporal"]


async def test_a_failed_build_tells_the_compilers_word_and_leaves_nothing(nothing_there: Path) -> None:
    make_program(nothing_there / "go", "echo compiling; echo 'error: no space left'; exit 1")
    with pytest.raises(StackError, match=r"no space left.*https://docs.temporal.io/cli"):
        await obtain_temporal(None, lambda _: None)
    assert [path.name for path in cache_folder().iterdir()] == [".lock"]


async def test_without_go_it_is_told_what_to_install() -> None:
    with pytest.raises(StackError, match=r"no Go.*https://docs.temporal.io/cli.*TASKRUNNER_TEMPORAL_BIN"):
        await obtain_temporal(None, lambda _: None)


async def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(StackError, match="/proc/nowhere"):
        await obtain_temporal(None, lambda _: None)
