"""What is said of files and folders of ours that cannot be used, and what mends them."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from messages.file_errors import Trouble, trouble_with
from tests.support.nobody import as_nobody

FINE = Trouble("", "")
ELSEWHERE = "set TASKRUNNER_HOME to another folder, or give it to nobody (chown) where only nobody needs it"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that everybody may pass, as pytest's own folders may not be."""
    with TemporaryDirectory(prefix="tr-home-") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "stack.lock").touch()
        yield Path(folder)


def using(path: Path, home: Path | None) -> Trouble:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    except OSError as e:
        return trouble_with(path, e, home=home)
    return FINE


def mend(trouble: Trouble) -> None:
    """Do what is said, as root where it asks for that."""
    command = trouble.mend.removeprefix("run: ").removeprefix("sudo ")
    subprocess.run(["/bin/sh", "-c", command], check=True)


def test_the_folder_that_is_at_fault_is_named_and_not_what_was_wanted_in_it(home: Path) -> None:
    file = home / "workspaces"
    file.touch()
    trouble = using(file / "one" / "lock", home)
    assert str(trouble) == f"{file} is not a folder; run: mv {file} {file}.old"
    mend(trouble)
    assert using(file / "lock", home) == FINE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to another user")
@pytest.mark.parametrize("mode", [0o600, 0o755])
def test_what_belongs_to_another_user_is_given_to_us(home: Path, mode: int) -> None:
    folder = home / "logs"
    folder.mkdir()
    folder.chmod(mode)
    trouble = as_nobody(lambda: using(folder / "postgres.log", home))
    assert trouble.problem == f"{folder} cannot be used by nobody: it belongs to root"
    assert trouble.mend == f"run: sudo chown -R nobody {folder}" + (
        f" && chmod u+rwx {folder}" if mode == 0o600 else ""
    )
    elsewhere = as_nobody(lambda: using(folder / "postgres.log", None))
    assert elsewhere.mend == ELSEWHERE
    mend(trouble)
    assert as_nobody(lambda: using(folder / "postgres.log", home)) == FINE


def test_what_is_ours_and_closed_is_opened(home: Path) -> None:
    folder = home / "logs"
    folder.mkdir()
    folder.chmod(0o400)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    trouble = as_nobody(lambda: using(folder / "postgres.log", home))
    assert str(trouble) == f"{folder} cannot be used: Permission denied; run: chmod u+rwx {folder}"
    mend(trouble)
    assert as_nobody(lambda: using(folder / "postgres.log", home)) == FINE


def test_a_folder_in_the_place_of_a_file_is_moved_away(home: Path) -> None:
    path = home / "it's a folder"
    path.mkdir()
    trouble = using(path, home)
    assert trouble.problem == f"{path} is a folder where a file has to be"
    mend(trouble)
    assert using(path, home) == FINE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_by_what_could_not_be_written(number: int) -> None:
    trouble = trouble_with("/srv/x", OSError(number, os.strerror(number)))
    assert str(trouble).startswith("the disk of /srv/x is full; free some space")


def test_other_errors_keep_their_words(home: Path) -> None:
    trouble = using(home / ("x" * 300), home)
    assert trouble.problem.endswith("cannot be used: File name too long")
    assert len(str(trouble)) < 400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to another user")
def test_nobody_is_told_to_give_us_a_folder_in_which_no_stack_has_been_at_home() -> None:
    for folder in (Path("/etc"), Path("/"), Path("/root")):
        trouble = as_nobody(lambda folder=folder: using(folder / "logs", folder))
        assert trouble.problem == f"{folder} cannot be used by nobody: it belongs to root"
        assert trouble.mend == ELSEWHERE
