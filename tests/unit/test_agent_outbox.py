"""The workspace agent's outbox, alone: order, retries, tokens, and what survives on disk."""

import base64
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api import Connection, Token
from agent.outbox import FileQueue, Outbox
from tests.support.callback_api import Callback, CallbackApi, Reply

FAST = 0.02


@pytest.fixture
def api() -> Iterator[CallbackApi]:
    with CallbackApi() as api:
        yield api


@pytest.fixture
def token(tmp_path: Path) -> Token:
    return Token("first", tmp_path / "token")


@pytest.fixture
def outbox(api: CallbackApi, token: Token) -> Iterator[Outbox]:
    outbox = Outbox(api.url, "/api/workspaces/w-1", token, first_delay=FAST)
    yield outbox
    outbox.stop(wait=5)


def queue(outbox: Outbox, folder: Path, name: str = "lane") -> FileQueue:
    return FileQueue(folder / name, name, outbox.notify)


def test_messages_of_a_lane_arrive_in_order_and_once(outbox: Outbox, api: CallbackApi, tmp_path: Path) -> None:
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    for number in range(50):
        lane.put("note", {"number": number})
    assert outbox.wait_until_empty(10)
    assert [c.body["number"] for c in api.received] == list(range(50))
    assert list((tmp_path / "lane").iterdir()) == []


def test_a_lane_that_cannot_deliver_holds_up_no_other(outbox: Outbox, api: CallbackApi, tmp_path: Path) -> None:
    api.answer = lambda c: Reply(503 if c.kind == "stuck" else 200)
    stuck, free = queue(outbox, tmp_path, "stuck"), queue(outbox, tmp_path, "free")
    for lane in (stuck, free):
        outbox.add(lane)
        lane.put(lane.name, {})
    free.put("free", {})
    api.wait_for(lambda: api.count("free") == 2, 3)
    assert stuck.pending() == 1
    assert not outbox.wait_until_empty(0.05)


@pytest.mark.parametrize("status", [0, 408, 425, 429, 500, 502, 503, 302])
def test_what_may_pass_is_tried_again_until_it_has_passed(
    outbox: Outbox, api: CallbackApi, tmp_path: Path, status: int
) -> None:
    answers = [status, status, 200]
    api.answer = lambda _: Reply(answers.pop(0))
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    assert outbox.wait_until_empty(10)
    assert len(api.received) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_what_is_refused_for_good_makes_way_for_the_next(
    outbox: Outbox, api: CallbackApi, tmp_path: Path, status: int
) -> None:
    api.answer = lambda c: Reply(status if c.kind == "bad" else 200)
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("bad", {})
    lane.put("good", {})
    assert outbox.wait_until_empty(10)
    assert [c.kind for c in api.received] == ["bad", "good"]


def test_a_refused_connection_is_tried_again(outbox: Outbox, api: CallbackApi, tmp_path: Path) -> None:
    api.stop()
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    assert not outbox.wait_until_empty(0.1)
    api.start()
    assert outbox.wait_until_empty(10)
    assert api.count("note") == 1


def test_the_waits_double_and_vary_up_to_half(api: CallbackApi, token: Token, tmp_path: Path) -> None:
    outbox = Outbox(api.url, "/api/workspaces/w-1", token, first_delay=0.2)
    times: list[float] = []

    def answer(_: Callback) -> Reply:
        times.append(time.monotonic())
        return Reply(503 if len(times) < 4 else 200)

    api.answer = answer
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    assert outbox.wait_until_empty(10)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for wait, expected in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert expected <= wait < 1.5 * expected + 0.15


def test_retry_after_is_honoured_even_if_the_api_answers_others(
    outbox: Outbox, api: CallbackApi, tmp_path: Path
) -> None:
    times: list[float] = []

    def answer(_: Callback) -> Reply:
        times.append(time.monotonic())
        return Reply(429, headers={"Retry-After": "1"}) if len(times) == 1 else Reply()

    api.answer = answer
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    api.wait_for(lambda: times)
    for _ in range(5):
        outbox.wake()
    assert outbox.wait_until_empty(5)
    assert 1 <= times[1] - times[0] < 1.8


def test_a_wake_cuts_the_wait_short(api: CallbackApi, token: Token, tmp_path: Path) -> None:
    outbox = Outbox(api.url, "/api/workspaces/w-1", token, first_delay=60)
    api.answer = lambda _: Reply(503 if not api.received else 200)
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    api.wait_for(lambda: len(api.received) == 1)
    while not api.accepted:
        outbox.wake()
        time.sleep(0.01)
    assert outbox.wait_until_empty(5)


def test_a_token_refused_after_another_came_is_no_refusal(
    outbox: Outbox, api: CallbackApi, token: Token, tmp_path: Path
) -> None:
    def answer(callback: Callback) -> Reply:
        if callback.token == "first":
            token.adopt("second")  # by a heartbeat, while the request is on its way
            return Reply(401)
        return Reply()

    api.answer = answer
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    assert outbox.wait_until_empty(5)
    assert [c.token for c in api.received] == ["first", "second"]


def test_senders_that_wait_use_the_newest_token(outbox: Outbox, api: CallbackApi, token: Token, tmp_path: Path) -> None:
    api.answer = lambda c: Reply(503 if c.token == "first" else 200)
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("note", {})
    api.wait_for(lambda: api.received)
    token.adopt("second")
    outbox.wake()
    assert outbox.wait_until_empty(5)
    assert api.accepted[0].token == "second"


def test_undelivered_messages_are_found_again_and_delivered_ones_are_not(
    api: CallbackApi, token: Token, tmp_path: Path
) -> None:
    first = Outbox(api.url, "/api/workspaces/w-1", token)
    api.answer = lambda c: Reply(503 if c.kind == "b" else 200)
    lane = queue(first, tmp_path)
    first.add(lane)
    for kind in "abc":
        lane.put(kind, {})
    api.wait_for(lambda: any(c.kind == "b" for c in api.received))
    first.stop(wait=5)
    api.answer = lambda _: Reply()
    second = Outbox(api.url, "/api/workspaces/w-1", token)
    again = queue(second, tmp_path)
    assert again.pending() == 2
    second.add(again)
    again.put("d", {})
    assert second.wait_until_empty(5)
    assert [c.kind for c in api.accepted] == ["a", "b", "c", "d"]


def test_a_damaged_file_is_put_aside(outbox: Outbox, api: CallbackApi, tmp_path: Path) -> None:
    folder = tmp_path / "lane"
    folder.mkdir()
    good = json.dumps({"path": "note", "body": {"n": 5}})
    damaged = [b"", b"{", b"[]", b"\0" * 40, b'{"path": 1, "body": {}}', b'{"path": "x", "body": []}']
    for number, data in enumerate([*damaged, good.encode()], 1):
        (folder / f"{number:010}.json").write_bytes(data)
    (folder / ".0000000003.json.123").write_text("left by a kill")
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    lane.put("after", {})
    assert outbox.wait_until_empty(5)
    assert [c.kind for c in api.received] == ["note", "after"]


def test_a_disk_that_takes_nothing_does_not_stop_delivery(outbox: Outbox, api: CallbackApi, tmp_path: Path) -> None:
    lane = queue(outbox, tmp_path)
    outbox.add(lane)
    (tmp_path / "lane").rmdir()
    lane.put("note", {})
    assert outbox.wait_until_empty(5)
    assert api.count("note") == 1


def test_one_connection_serves_many_requests_and_a_stale_one_is_replaced(api: CallbackApi) -> None:
    connection = Connection(api.url)
    for _ in range(3):
        assert connection.post("/api/workspaces/w-1/note", b"{}", "t").status == 200
    assert len(api.connections) == 1
    api.stop()
    api.start()
    assert connection.post("/api/workspaces/w-1/note", b"{}", "t").status == 200
    assert len(api.connections) == 2
    connection.close()


def test_a_token_is_kept_and_only_a_newer_one_replaces_the_configured(tmp_path: Path) -> None:
    path = tmp_path / "token"
    old, new, later_attempt = _jwt(1000, 1), _jwt(2000, 1), _jwt(500, 2)
    token = Token(old, path)
    assert token.adopt(new)
    assert not token.adopt(new)
    assert Token(old, path).text == new
    assert Token(later_attempt, path).text == later_attempt
    for nonsense in (None, "", "a b", "a\nb", 5, "ü", "x" * 20000):
        assert not token.adopt(nonsense)
    assert token.text == new


@pytest.mark.parametrize(
    ("text", "expired"),
    [("opaque", False), ("a.b.c", False), ("a.!!.c", False), ("..", False)],
)
def test_a_token_that_says_nothing_never_expires(tmp_path: Path, text: str, expired: bool) -> None:
    assert Token(text, tmp_path / "token").expired is expired


def test_a_token_expires_when_it_says_so(tmp_path: Path) -> None:
    assert Token(_jwt(time.time() - 1, 1), tmp_path / "token").expired
    assert not Token(_jwt(time.time() + 60, 1), tmp_path / "token").expired


def _jwt(exp: float, attempt: int) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": exp, "att": attempt}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"
