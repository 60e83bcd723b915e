"""What is said of a server that ended while it started."""

from pathlib import Path

import pytest

from workers.errors import DidNotStart, DiskFull, did_not_start

# As PostgreSQL 18 and Temporal 1.29 said them on a file system of 2 MB.
POSTGRES = 'FATAL:  could not write to file "pg_wal/xlogtemp.1438": No space left on device'
TEMPORAL = (
    "error while updating cluster metadata: SaveClusterMetadata operation failed. Failed to commit transaction."
    ' Error: database or disk is full (13)"'
)


@pytest.mark.parametrize("words", [POSTGRES, TEMPORAL])
def test_a_full_disk_is_called_that_and_no_fault_of_the_program(words: str) -> None:
    error = did_not_start("Temporal did not start", words, Path("/srv/home"))
    assert isinstance(error, DiskFull)
    assert str(error).startswith("Temporal did not start: the disk of /srv/home is full; free some space, or set TASK")


def test_other_last_words_are_passed_on() -> None:
    error = did_not_start("Temporal did not start", "panic: no such flag", Path("/srv/home"))
    assert type(error) is DidNotStart
    assert str(error) == "Temporal did not start: panic: no such flag"
