"""Programs that a thread runs, and that another one stops."""

import os
import select
import threading
from pathlib import Path

import pytest

from activities.subprocesses import Stopped, ThreadPrograms


def ends(pid: int) -> bool:
    """Tell whether a process has ended, or is just about to: its pipes close a moment before."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 5)[0])
    finally:
        os.close(process)


def test_one_that_is_stopped_ends_with_what_it_started_and_no_other_begins(tmp_path: Path) -> None:
    programs, fifo = ThreadPrograms(), tmp_path / "pids"
    os.mkfifo(fifo)
    ended = []
    script = f"trap 'exit 7' TERM; sleep 1000 & echo $! $$ > {fifo}; wait"
    thread = threading.Thread(
        target=lambda: ended.append(programs.run(["/bin/sh", "-c", script], tmp_path, dict(os.environ)))
    )
    thread.start()
    pids = [int(pid) for pid in fifo.read_text().split()]
    programs.stop()
    thread.join(10)
    assert [finished.returncode for finished in ended] == [7]  # it was asked
    assert all(ends(pid) for pid in pids)
    with pytest.raises(Stopped):
        programs.run(["true"], tmp_path, {})


def test_what_it_says_is_kept(tmp_path: Path) -> None:
    finished = ThreadPrograms().run(["/bin/sh", "-c", "pwd; echo no >&2; exit 3"], tmp_path, dict(os.environ))
    assert (finished.returncode, finished.stdout, finished.stderr) == (3, f"{tmp_path}\n".encode(), b"no\n")
