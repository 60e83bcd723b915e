"""The repository that a task works on, found in one call where all is as it should be."""

from pathlib import Path

from cli.repository import find_with_commit
from tests.support.git_repositories import git, make_repository


def test_the_repository_around_a_folder_is_found_whatever_its_name_holds(tmp_path: Path) -> None:
    top = make_repository(tmp_path / "of two\nlines ")
    assert find_with_commit(top / "src") == top


def test_one_without_a_commit_or_without_a_checkout_needs_a_closer_look(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "new")
    git(tmp_path, "init", "--quiet", "--bare", "bare")
    assert [find_with_commit(tmp_path / name) for name in ("new", "bare", ".")] == [None, None, None]
