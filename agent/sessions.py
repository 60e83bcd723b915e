"""All sessions of a workspace: created once, found again after a restart."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING

from agent.config import ID
from agent.files import log, sync_folder
from agent.processes import SESSION_VARIABLE, Children, environment_of, process_table
from agent.session import Session, Spec, Workplace

if TYPE_CHECKING:
    from agent.config import Config
    from agent.outbox import Outbox


class OtherSpec(Exception):
    """A session with that id exists and runs something else."""


class NotRecorded(Exception):
    """The session could not be noted on disk, so it was not started; the text says why."""


class Sessions:
    """The sessions below ``state/sessions``; ``env`` is what every session's environment starts from."""

    def __init__(self, config: Config, env: dict[str, str], children: Children, outbox: Outbox) -> None:
        self._folder = config.state / "sessions"
        self._outbox = outbox
        self._children = children
        self._place = Workplace(config.name, config.workspace, env, children, self._orphans_of)
        self._creating = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._closed = False

    def load(self) -> None:
        """Find the sessions that an earlier run of the agent left: serve them, deliver what is not, end what runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self._folder.iterdir()):
            if ID.fullmatch(folder.name) is None or not folder.is_dir():
                continue
            if not (folder / "session.json").exists():
                # Written before anything is started: so nothing was, and the request may be repeated.
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                session = Session(folder.name, folder, self._place, self._outbox.notify)
            except OSError as e:
                log(f"session {folder.name} cannot be read: {e}")
                continue
            self._sessions[folder.name] = session
            record = session.record
            if not record.delivered:
                self._outbox.add(session)
            if not record.is_final:
                threading.Thread(target=session.recover, name=f"recover-{folder.name}", daemon=True).start()

    def create(self, session_id: str, spec: Spec) -> tuple[Session, bool]:
        """Return the session of that id, started now if there was none, and whether it was.

        Raises :class:`OtherSpec` or :class:`NotRecorded`.
        """
        with self._creating:
            session = self._sessions.get(session_id)
            if session is not None:
                # One whose record was damaged cannot be compared: better taken for the same than run twice.
                if session.record.digest not in {"", spec.digest}:
                    raise OtherSpec
                return session, False
            if self._closed:
                raise NotRecorded("the workspace agent is stopping")
            folder = self._folder / session_id
            if folder.exists():  # it could not be read, and may run: better refused than run twice
                raise NotRecorded(f"a session of this id is there and cannot be read: {folder}")
            try:
                folder.mkdir()
                sync_folder(self._folder)
                session = Session(session_id, folder, self._place, self._outbox.notify)
                session.start(spec)
            except OSError as e:
                shutil.rmtree(folder, ignore_errors=True)
                raise NotRecorded(f"cannot record the session: {e.strerror}") from e
            self._sessions[session_id] = session
        self._outbox.add(session)
        return session, True

    def get(self, session_id: str) -> Session | None:
        """Return a session, or None."""
        return self._sessions.get(session_id)

    def ids(self) -> list[str]:
        """Return the ids of all sessions, the newest last."""
        return list(self._sessions)

    def stop_all(self, grace: float) -> None:
        """Take no more sessions, and end those that run as ``interrupted``."""
        with self._creating:
            self._closed = True
        stopping = [
            threading.Thread(target=session.stop, args=(grace, "interrupted"), daemon=True)
            for session in self._sessions.values()
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    def _orphans_of(self, session: Session) -> set[int]:
        """Return the daemons that only this session can have made: it alone has run since they started."""
        since = session.record.started
        running = [s for s in list(self._sessions.values()) if not s.record.is_final and s is not session]
        if since is None or running:
            return set()
        own = f"{SESSION_VARIABLE}={session.session_id}".encode()
        found: set[int] = set()
        for process in process_table().values():
            if process.parent != os.getpid() or process.started < since or self._children.is_own(process.pid):
                continue
            marks = {m for m in environment_of(process.pid) if m.startswith(f"{SESSION_VARIABLE}=".encode())}
            if not marks or own in marks:
                found.add(process.pid)
        return found
