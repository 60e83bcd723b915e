"""What commands print, and to whom: bytes that are no text, readers that have had enough, files that take no more."""

import base64
import os
import subprocess
import threading
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


STREAMS = ("logs", "logs --json", "logs -f", "events", "events -f")
READERS = (*STREAMS, "list", "show", "logs --boot", "diff", "diff --json")


def reading(cli: Cli, command: str, task: str, stdout: int) -> Finished:
    """Run a command that only reads, with ``stdout`` for its output, which is closed here."""
    name, *options = command.split()
    args = [name, *options, *([] if name == "list" else [task])]
    try:
        process = subprocess.Popen(
            [*PROGRAM, *args], cwd=cli.cwd, env=cli.env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
        )
    finally:
        os.close(stdout)
    _, err = process.communicate(timeout=60)
    return Finished(process.returncode, b"", err)


def closing(cli: Cli, command: str, task: str, wanted: int) -> Finished:
    """Run a command whose reader closes the pipe when it has read ``wanted`` bytes."""
    ours, theirs = os.pipe()

    def read() -> None:
        if wanted:
            assert os.read(ours, wanted)
        os.close(ours)

    reader = threading.Thread(target=read)
    reader.start()
    if not wanted:
        reader.join()
    finished = reading(cli, command, task, theirs)
    reader.join()
    return finished


def test_a_reader_that_has_had_enough_is_no_error_and_a_full_disk_is_one(
    cli: Cli, repository: Path, gate: Gate
) -> None:
    """S36."""

    def left(command: str, task: str, wanted: int) -> None:
        finished = closing(cli, command, task, wanted)
        assert (finished.code, finished.err) == (0, ""), (command, task, wanted, finished)

    def full(command: str, task: str) -> None:
        finished = reading(cli, command, task, os.open("/dev/full", os.O_WRONLY))
        assert (finished.code, is_one_line(finished)) == (1, True), (command, task, finished)
        assert "the output cannot be written: No space left on device" in finished.err

    with cli.dev():
        for task, prompt, commands in (("large", "seq 200000 | tee file", READERS), ("small", "echo x", STREAMS)):
            assert cli.run("run", "--id", task, prompt, cwd=repository).code == 0
            for command in commands:
                left(command, task, 0)
                left(command, task, 1)
                full(command, task)
        going = cli.start("run", "--backend", "local", "--id", "going", f"seq 200000; read line < {gate}")
        going.wait_for("200000", stream="out")
        left("logs -f", "going", 1)
        left("events -f", "going", 0)
        gate.open()
        assert going.end().code == 0
    for command in ("list", "logs", "logs -f", "events -f"):
        left(command, "large", 0)
        full(command, "large")
