"""The real workspace agent: the built zipapp, started as a process on a socket that the test hands to it."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from agent.build import build_zipapp

TOKEN = "an-agent-token"
PYTHON = os.environ.get("TASKRUNNER_TEST_AGENT_PYTHON") or sys.executable
"""The interpreter that runs the agent in the tests; the agent promises 3.9 and newer."""


class Reply(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: dict[str, str]


class AgentProcess:
    """One workspace on disk and the agent that serves it; may be killed and started again on the same socket."""

    def __init__(self, folder: Path, zipapp: Path, api_url: str, **config: Any) -> None:
        self.folder = folder
        self.workspace_id = f"w-{uuid.uuid4().hex[:12]}"
        self.checkout = folder / "checkout"
        self.state = folder / "state"
        self.log = folder / "agent.log"
        self._zipapp = zipapp
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.config: dict[str, Any] = {
            "workspace_id": self.workspace_id,
            "attempt": 1,
            "name": f"tr-{self.workspace_id}-1",
            "api_url": api_url,
            "callback_token": "the-callback-token",
            "agent_token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            "workspace": str(self.checkout),
            "state": str(self.state),
            "checkout": {"kind": "none"},
            "setup": [],
            "env": {},
            "heartbeat_interval_seconds": 15,
            **config,
        }
        if self.config["checkout"]["kind"] == "none":
            self.checkout.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self) -> Path:
        path = self.folder / "config.json"
        path.write_text(json.dumps(self.config))
        path.chmod(0o600)
        return path

    def start(self) -> "AgentProcess":
        fd = self._listener.fileno()
        argv = [
            sys.executable,
            str(self._zipapp),
            "serve",
            "--config",
            str(self.write_config()),
            "--listen-fd",
            str(fd),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[fd],
                start_new_session=True,
                env={**os.environ, "TASKRUNNER_COMPUTE": self.config["name"]},
            )
        return self

    def prepare(self) -> subprocess.CompletedProcess[str]:
        argv = [PYTHON, str(self._zipapp), "prepare", "--config", str(self.write_config())]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = dict(headers or {})
            if token is not None:
                sent.setdefault("Authorization", f"Bearer {token}")
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Reply(response.status, json.loads(response.read() or b"{}"), dict(response.getheaders()))
        finally:
            connection.close()

    def session(self, session_id: str, script: str, **fields: Any) -> Reply:
        """POST a session that runs a shell script."""
        body = {"session_id": session_id, "command": ["/bin/sh", "-c", script], "env": {}, **fields}
        return self.request("POST", "/sessions", body)

    def finished(self, session_id: str, wait: float = 20) -> dict[str, Any]:
        """Wait for the session's end and the delivery of it."""
        return self.request("GET", f"/sessions/{session_id}?wait={wait}").body

    def living(self) -> list[int]:
        """The pids of everything of this workspace that is alive, the agent aside; found as a backend does."""
        mark = f"TASKRUNNER_COMPUTE={self.config['name']}".encode()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or (self.process is not None and int(entry.name) == self.process.pid):
                continue
            try:
                is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not is_zombie and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue
        return found

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self._listener.close()
        shutil.rmtree(self.state, ignore_errors=True)  # a test of the backlog leaves hundreds of megabytes


def build(folder: Path) -> Path:
    return build_zipapp(folder / "agent.pyz")
