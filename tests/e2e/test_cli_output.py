"""What commands print, and to whom: bytes that are no text, readers that have had enough, files that take no more."""

import base64
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, Cli, Finished, is_one_line
from tests.support.stack import Gate

pytestmark = pytest.mark.timeout(240)


def test_a_patch_that_is_no_text_loses_nothing_in_json(cli: Cli, repository: Path) -> None:
    """S44."""

    def patch_of(task: str, prompt: str) -> tuple[dict, bytes]:
        ran = cli.run("run", "--id", task, prompt, cwd=repository)
        assert ran.code == 0, ran
        return cli.json("diff", task), cli.run("diff", task).raw

    def applies(patch: bytes) -> bool:
        return subprocess.run(["git", "apply", "--check"], cwd=repository, input=patch, check=False).returncode == 0

    with cli.dev():
        shown, patch = patch_of("text", "printf 'caf\\303\\251\\r\\n\\342\\200\\250' > file")
        assert shown == {"task_id": "text", "patch": patch.decode(), "patch_base64": None}
        assert applies(shown["patch"].encode())
        for task, prompt in (
            ("content", "printf 'caf\\351\\n' > file"),
            ("name", "printf 'x\\n' > \"$(printf 'caf\\377')\""),
        ):
            shown, patch = patch_of(task, prompt)
            assert shown["patch"] is None
            decoded = base64.b64decode(shown["patch_base64"], validate=True)
            assert decoded == patch
            assert applies(decoded)
