"""A change that is on no branch of the user's: saved as a git bundle, and fetched from it."""

import json
import re
import subprocess

import pytest

from tests.support.cli import Cli, is_one_line
from tests.support.git_repositories import git, make_repository

pytestmark = pytest.mark.timeout(240)


def test_a_change_is_fetched_with_the_commands_that_were_told(cli: Cli) -> None:
    """S44: of a clone, and of an empty folder."""
    origin = make_repository(cli.cwd / "origin")
    with cli.dev():
        ran = cli.run("run", "--backend", "local", "--repo", str(origin), "--id", "cloned", "echo two >> file")
        assert ran.code == 0, ran
        assert git(origin, "branch", "--list", "taskrunner/*") == ""
        told = re.search(r"fetch +(taskrunner diff cloned --bundle FILE) && (git fetch FILE (\S+):\S+)", ran.err)
        assert told, ran
        save, fetch = (command.replace("FILE", "my.bundle").split() for command in told.groups()[:2])
        saved = cli.run(*save[1:], cwd=origin)
        assert (saved.code, saved.out) == (0, ""), saved
        assert " ".join(fetch) in saved.err
        subprocess.run(fetch, cwd=origin, check=True)
        assert "+two" in git(origin, "diff", f"main...{told[3]}")

        assert cli.run("run", "--backend", "local", "--id", "empty", "echo new > made").code == 0
        file = cli.cwd / "empty.bundle"
        answer = cli.run("diff", "empty", "--bundle", str(file), "--json")
        assert answer.code == 0, answer
        assert json.loads(answer.out) == {
            "task_id": "empty",
            "bundle": str(file),
            "branch": "taskrunner/empty",
            "bytes": file.stat().st_size,
        }
        git(cli.cwd, "clone", "-q", "-b", "taskrunner/empty", str(file), "clone")
        assert (cli.cwd / "clone" / "made").read_text() == "new\n"

        for target, word in (("/dev/full", "No space left"), (str(cli.cwd), "directory"), ("/nowhere/x", "No such")):
            failed = cli.run("diff", "empty", "--bundle", target)
            assert (failed.code, is_one_line(failed)) == (1, True), failed
            assert target in failed.err
            assert word in failed.err
        assert cli.run("run", "--id", "same", "true").code == 0
        unchanged = cli.run("diff", "same", "--bundle", str(cli.cwd / "none"))
        assert (unchanged.code, is_one_line(unchanged)) == (1, True), unchanged
        assert not (cli.cwd / "none").exists()
        assert cli.run("run", "--repo", str(origin), "--id", "branched", "echo three >> file").code == 0
        branched = cli.run("diff", "branched", "--bundle", str(cli.cwd / "none"))
        assert (branched.code, "taskrunner/branched" in branched.err) == (1, True), branched
