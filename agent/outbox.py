"""Callbacks on their way to the API: one lane for each thing that must stay in order, one sender a lane.

A lane keeps its messages on disk until the API has answered, so a killed agent's successor goes on where it stopped.
A message is tried again 1 s later, then after twice as long, up to 30 s, each wait up to half longer by chance, for as
long as the token lives. An answer of 2xx, or of 4xx other than 408, 425 and 429, settles it. A refused token that was
replaced meanwhile settles nothing.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from agent.api import Answer, Connection, Token, Unreachable
from agent.files import log, read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
_TRY_AGAIN = {408, 425, 429}
_MESSAGE_NAME = re.compile(r"[0-9]{10}\.json")


class Message(NamedTuple):
    """One request: the path below ``/api/workspaces/{id}/``, and its JSON."""

    path: str
    body: bytes


class Lane(ABC):
    """A sequence of messages, delivered in order. Its methods are called by any thread."""

    name: str

    @abstractmethod
    def next(self) -> Message | float | None:
        """Return the message to send now, the seconds until there will be one, or None if nothing is known of one."""

    @abstractmethod
    def settle(self, message: Message, answer: Answer) -> None:
        """Forget the message that :meth:`next` returned: it was delivered, or refused for good."""

    @abstractmethod
    def pending(self) -> int:
        """Return how many messages are still to be delivered, as far as is known."""

    def ended(self) -> bool:
        """Whether no message will ever come any more."""
        return False


class Outbox:
    """The senders of all lanes. ``root`` is the path that every message's path is below."""

    def __init__(self, api_url: str, root: str, token: Token, *, first_delay: float = FIRST_DELAY_SECONDS) -> None:
        self._api_url = api_url
        self._root = root.rstrip("/")
        self._token = token
        self._first_delay = first_delay
        self._changed = threading.Condition()
        self._version = 0
        self._wakes = 0
        self._stopping = False
        self._lanes: list[Lane] = []
        self._senders: list[threading.Thread] = []

    def add(self, lane: Lane) -> None:
        """Start delivering a lane."""
        with self._changed:
            self._lanes.append(lane)
            sender = threading.Thread(target=self._send_all, args=(lane,), name=f"send-{lane.name}", daemon=True)
            self._senders = [*(s for s in self._senders if s.is_alive()), sender]
            sender.start()

    def notify(self) -> None:
        """Say that a lane has changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Say that the API answers again, or that the token is another: whoever waits to try again does so now."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def stop(self, *, wait: float = 0.0) -> None:
        """Let the senders end, and wait for each at most ``wait`` seconds; what is on disk stays there."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            senders = list(self._senders)
        for sender in senders:
            sender.join(wait)

    def pending(self) -> int:
        """Return how many messages are still to be delivered."""
        with self._changed:
            lanes = list(self._lanes)
        return sum(lane.pending() for lane in lanes)

    def wait_until_empty(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing is left to be delivered; return whether that is so."""
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                version = self._version
            if self.pending() == 0:
                return True
            with self._changed:
                if not self._changed.wait_for(lambda: self._version != version, deadline - time.monotonic()):  # noqa: B023
                    return False

    def _send_all(self, lane: Lane) -> None:
        connection = Connection(self._api_url)
        try:
            self._send_until_end(connection, lane)
        finally:
            connection.close()

    def _send_until_end(self, connection: Connection, lane: Lane) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                version = self._version  # read before the lane is asked, so that no change is missed
            try:
                found = lane.next()
                if isinstance(found, Message):
                    answer = self._deliver(connection, lane, found)
                    if answer is None:
                        return
                    lane.settle(found, answer)
                    self.notify()
                    continue
            except Exception as e:  # a lane that dies silently would never deliver anything again
                log(f"{lane.name}: {type(e).__name__}: {e}")
                found = LONGEST_DELAY_SECONDS
            if found is None and lane.ended():
                with self._changed:
                    self._lanes.remove(lane)
                return
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._version != version, found)  # noqa: B023

    def _deliver(self, connection: Connection, lane: Lane, message: Message) -> Answer | None:
        """Send until there is a final answer; None if the outbox was stopped before."""
        failures = 0
        trouble = ""
        while True:
            with self._changed:
                wakes = self._wakes  # a beat that succeeds from here on cuts the wait short
            if self._token.expired:
                if trouble != "expired":
                    trouble = "expired"
                    log(f"{lane.name}: the callback token has expired: {message.path} waits for another one")
                # A beat that succeeds all the same tells that it is the clock that is wrong: then it is worth a try.
                if not self._wait(wakes, None):
                    return None
            token = self._token.text
            retry_after = None
            try:
                answer = connection.post(f"{self._root}/{message.path}", message.body, token)
            except Unreachable as e:
                error = str(e)
            else:
                if 200 <= answer.status < 300:
                    if answer.body.get("success") is False:
                        log(f"{lane.name}: {message.path} came too late: {answer.body.get('reason')}")
                    return answer
                if 400 <= answer.status < 500 and answer.status not in _TRY_AGAIN:
                    if answer.status == 401 and self._token.text != token:
                        continue
                    log(f"{lane.name}: {message.path} was refused for good: {answer.status} {_detail(answer)}")
                    return answer
                error = f"{answer.status} {_detail(answer)}"
                retry_after = answer.retry_after
            if error != trouble:
                trouble = error
                log(f"{lane.name}: {message.path} is tried again: {error}")
            delay = min(LONGEST_DELAY_SECONDS, self._first_delay * 2.0 ** min(failures, 16))
            failures += 1
            if retry_after:
                # The API has named its time, so no heartbeat cuts this wait short.
                delay = min(retry_after, LONGEST_RETRY_AFTER_SECONDS)
            delay *= 1 + random.random() / 2  # noqa: S311 - spreads load, keeps no secret
            if not self._wait(None if retry_after else wakes, delay):
                return None

    def _wait(self, wakes: int | None, timeout: float | None) -> bool:
        """Wait for a wake (if ``wakes`` is their number so far) or the time; return False if the outbox stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or (wakes is not None and self._wakes != wakes), timeout)
            return not self._stopping


class FileQueue(Lane):
    """A lane of whole messages, each a file in ``folder``. A damaged file is put aside and the others are delivered."""

    def __init__(self, folder: Path, name: str, notify: Callable[[], None]) -> None:
        self.name = name
        self._folder = folder
        self._notify = notify
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Path, Message]] = deque()
        self._number = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(p for p in folder.iterdir() if _MESSAGE_NAME.fullmatch(p.name)):
            self._number = int(path.stem)
            stored = read_json(path) or {}
            to, body = stored.get("path"), stored.get("body")
            if isinstance(to, str) and isinstance(body, dict):
                self._waiting.append((path, Message(to, json.dumps(body).encode())))
            else:
                log(f"{name}: {path.name} is damaged and put aside")
                path.replace(path.with_suffix(".damaged"))

    def put(
        self, path: str, body: dict[str, Any], *, durable: bool = True, kept: Callable[[], None] = lambda: None
    ) -> None:
        """Keep a message on disk, then deliver it. Where the disk takes nothing it is delivered from memory.

        ``durable``: it is also to survive a crash of the machine. ``kept`` is called between the two: what it writes
        is there before anybody can know of the message, and not before the message is safe.
        """
        with self._lock:
            self._number += 1
            file = self._folder / f"{self._number:010}.json"
            try:
                write_json(file, {"path": path, "body": body}, durable=durable)
            except OSError as e:
                log(f"{self.name}: cannot keep a message: {e.strerror}")
            kept()
            self._waiting.append((file, Message(path, json.dumps(body).encode())))
        self._notify()

    def next(self) -> Message | float | None:
        """See :meth:`Lane.next`."""
        with self._lock:
            return self._waiting[0][1] if self._waiting else None

    def settle(self, message: Message, answer: Answer) -> None:  # noqa: ARG002 - final is final
        """See :meth:`Lane.settle`."""
        with self._lock:
            file, _ = self._waiting.popleft()
            file.unlink(missing_ok=True)

    def pending(self) -> int:
        """See :meth:`Lane.pending`."""
        with self._lock:
            return len(self._waiting)


def _detail(answer: Answer) -> str:
    return " ".join(str(answer.body.get("detail") or answer.body.get("title") or "").split())[:300]
