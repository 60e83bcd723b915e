"""The repository that a task works on, found in one call where all is as it should be."""

from pathlib import Path

import pytest

from cli.errors import UsageError
from cli.repository import check_repository, find_with_commit
from tests.support.git_repositories import git, make_repository


def test_the_repository_around_a_folder_is_found_whatever_its_name_holds(tmp_path: Path) -> None:
    top = make_repository(tmp_path / "of two\nlines ")
    assert find_with_commit(top / "src") == top


def test_one_without_a_commit_or_without_a_checkout_needs_a_closer_look(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "new")
    git(tmp_path, "init", "--quiet", "--bare", "bare")
    assert [find_with_commit(tmp_path / name) for name in ("new", "bare", ".")] == [None, None, None]


def test_where_the_branch_of_head_is_not_there_another_one_is_named(tmp_path: Path) -> None:
    make_repository(tmp_path / "of")
    git(tmp_path, "clone", "--quiet", "--bare", "of", "bare")
    bare = tmp_path / "bare"
    branch = git(bare, "branch", "--show-current").strip()
    git(bare, "symbolic-ref", "HEAD", "refs/heads/gone")
    with pytest.raises(
        UsageError, match=rf"no commit at HEAD, which names a branch that is not there.*--ref {branch}$"
    ):
        check_repository(bare, None)
    assert check_repository(bare, branch) == bare
