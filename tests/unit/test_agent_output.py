"""The workspace agent's output spool and what is derived from output, alone."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import agent.output
from agent.output import BATCH_BYTES, FLUSH_SECONDS, OutputSpool
from agent.session import LastLine


def spool(folder: Path) -> OutputSpool:
    folder.mkdir(exist_ok=True)
    return OutputSpool(folder, lambda: None)


def take(output: OutputSpool) -> dict[str, Any] | None:
    """The next batch's JSON, waiting for it as long as it says."""
    while isinstance(found := output.batch(), float):
        time.sleep(found)
    if found is None:
        return None
    body = json.loads(found[1])
    assert found[0] == body["offset"] + len("".join(body["chunks"]).encode())
    output.acknowledge(found[0])
    return body


def take_all(output: OutputSpool) -> str:
    text = ""
    while (body := take(output)) is not None:
        assert body["offset"] == len(text.encode())
        text += "".join(body["chunks"])
    return text


def test_what_comes_first_leaves_at_once_and_what_follows_a_moment_later(tmp_path: Path) -> None:
    output = spool(tmp_path / "s")
    assert output.batch() is None
    output.append("a")
    found = output.batch()
    assert isinstance(found, tuple)
    assert json.loads(found[1]) == {"offset": 0, "chunks": ["a"]}
    output.acknowledge(found[0])
    output.append("b")
    wait = output.batch()
    assert isinstance(wait, float)
    assert 0 < wait <= FLUSH_SECONDS <= 0.05
    output.append("c")
    assert take(output) == {"offset": 1, "chunks": ["bc"]}
    output.append("d")
    output.end()
    found = output.batch()
    assert isinstance(found, tuple)
    assert json.loads(found[1]) == {"offset": 3, "chunks": ["d"]}


def test_a_full_batch_leaves_at_once_and_is_cut_at_a_character(tmp_path: Path) -> None:
    output = spool(tmp_path / "s")
    text = "漢" * 100_000
    output.append(text)
    found = output.batch()
    assert isinstance(found, tuple)
    assert BATCH_BYTES - 3 < found[0] <= BATCH_BYTES
    output.end()
    assert take_all(output) == text


@pytest.mark.parametrize("text", ["\0" * 500_000, '"\\' * 200_000, "\x1b[0m" * 60_000])
def test_what_json_makes_longer_is_sent_in_smaller_batches(tmp_path: Path, text: str) -> None:
    output = spool(tmp_path / "s")
    output.append(text)
    output.end()
    found = output.batch()
    assert isinstance(found, tuple)
    assert len(found[1]) <= 240 * 1024
    assert take_all(output) == text


def test_what_is_delivered_leaves_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.output, "_SEGMENT_BYTES", 1000)
    output = spool(tmp_path / "s")
    for number in range(200):
        output.append(f"{number:0200}\n")
    assert len(list((tmp_path / "s").glob("output-*"))) > 20
    output.end()
    assert take_all(output) == "".join(f"{number:0200}\n" for number in range(200))
    assert list((tmp_path / "s").glob("output-*")) == []


def test_a_successor_goes_on_where_the_api_is(tmp_path: Path) -> None:
    output = spool(tmp_path / "s")
    output.append("é" * 200_000)
    assert take(output) is not None
    successor = spool(tmp_path / "s")
    successor.end()
    assert successor.size == 400_000
    body = take(successor)
    assert body is not None
    assert body["offset"] == BATCH_BYTES
    while take(successor) is not None:
        pass
    assert successor.is_delivered


@pytest.mark.parametrize("damage", [b"", b"x", b"-5", b"\xff" * 9])
def test_a_successor_that_cannot_tell_where_the_api_is_sends_what_it_has(tmp_path: Path, damage: bytes) -> None:
    output = spool(tmp_path / "s")
    output.append("hello")
    take(output)
    (tmp_path / "s" / "acknowledged").write_bytes(damage)
    successor = spool(tmp_path / "s")
    successor.end()
    assert take_all(successor) == "hello"


def test_damaged_bytes_keep_every_later_offset_true(tmp_path: Path) -> None:
    output = spool(tmp_path / "s")
    output.append("aéb")
    path = next((tmp_path / "s").glob("output-*"))
    path.write_bytes(b"a\xff\xfeb\xe2\x82")
    successor = spool(tmp_path / "s")
    successor.end()
    assert take(successor) == {"offset": 0, "chunks": ["a??b??"]}
    assert take(successor) is None


def test_output_that_a_crash_took_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.output, "_SEGMENT_BYTES", 10)
    output = spool(tmp_path / "s")
    for letter in "abc":
        output.append(letter * 10)
    first, second, _ = sorted((tmp_path / "s").glob("output-*"))
    os.truncate(first, 4)
    second.unlink()
    successor = spool(tmp_path / "s")
    successor.end()
    assert take(successor) == {"offset": 0, "chunks": ["aaaa"]}
    assert take(successor) == {"offset": 20, "chunks": ["c" * 10]}
    assert take(successor) is None


def test_rewinding_is_possible_once_to_what_is_still_there(tmp_path: Path) -> None:
    output = spool(tmp_path / "s")
    output.append("0123456789")
    take(output)
    output.append("more")
    assert not output.rewind(14)
    assert output.rewind(4)
    assert not output.rewind(4)
    assert take(output) == {"offset": 4, "chunks": ["456789more"]}
    assert not output.rewind(4)


def test_a_full_disk_loses_output_but_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = spool(tmp_path / "s")
    output.append("before\n")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        output.append("lost\n")
    output.append("after\n")
    output.end()
    assert take_all(output) == "before\n\n[5 bytes of output are lost: the disk was full]\nafter\n"


@pytest.mark.parametrize(
    ("pieces", "summary"),
    [
        ([], ""),
        (["one\ntwo"], "two"),
        (["one\n", "\n  \n\t\n"], "one"),
        (["on", "e\nt", "wo\n"], "two"),
        (["10%\r50%\r100%\r"], "100%"),
        (["\x1b[32mgreen\x1b[0m\x00\x07\n"], "green"),
        (["x" * 4000 + "\n"], "x" * 500),
        (["y" * 300] * 5, "y" * 500),
        (["done\n", "\x1b[0m\n"], "done"),
    ],
)
def test_the_summary_is_the_last_line_that_is_not_blank(pieces: list[str], summary: str) -> None:
    line = LastLine()
    for piece in pieces:
        line.feed(piece)
    assert line.text == summary
