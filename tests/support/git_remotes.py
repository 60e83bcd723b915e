"""Repositories elsewhere, over git's real transports: ``git http-backend`` behind a server, and a stand-in ssh."""

import base64
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.git_repositories import GIT_ENV, git

USER, PASSWORD = "worker", "hunter2-of-the-worker"


class GitServer:
    """Serves the bare repositories below ``root`` over HTTP, with pushes; counts what it is asked.

    ``password``: what a client has to show. ``silent``: requests are taken and never answered. ``hold``: the answer
    to a fetch stops half-way until it is set; ``holding`` tells that one has.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.password: str | None = None
        self.silent = False
        self.broken = False
        self.hold: threading.Event | None = None
        self.holding = threading.Event()
        self.requests: list[str] = []
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def fetches(self) -> int:
        """How often objects were asked for."""
        return sum(request.startswith("fetch ") for request in self.requests)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fetching = request.headers.get("Content-Encoding") == "gzip" or b"command=fetch" in body
        is_fetch = url.path.endswith("/git-upload-pack") and fetching
        self.requests.append(f"{'fetch' if is_fetch else request.command} {request.path}")
        if self.silent:
            self.closing.wait()
            return
        if self.broken:
            request.send_error(500)
            return
        if self.password is not None:
            shown = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
            if request.headers.get("Authorization") != f"Basic {shown}":
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="git"')
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        env = {
            **GIT_ENV,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        request.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            if is_fetch and self.hold is not None:
                request.wfile.write(content[: len(content) // 2])
                request.wfile.flush()
                self.holding.set()
                self.hold.wait()
                content = content[len(content) // 2 :]
            request.wfile.write(content)
        except OSError:
            pass  # who asked was killed

    @contextmanager
    def serving(self) -> Iterator["GitServer"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            if self.hold:
                self.hold.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def make_remote(repository: Path, bare: Path) -> Path:
    """Make a bare copy of a repository, which takes pushes over HTTP."""
    bare.parent.mkdir(parents=True, exist_ok=True)
    git(repository.parent, "clone", "--quiet", "--bare", str(repository), str(bare))
    git(bare, "config", "http.receivepack", "true")
    return bare


def commit(repository: Path, name: str, content: str | bytes = "new\n") -> str:
    """Commit a file and return the commit."""
    data = content.encode() if isinstance(content, str) else content
    (repository / name).write_bytes(data)
    git(repository, "add", name)
    git(repository, "commit", "--quiet", "-m", f"add {name}")
    return git(repository, "rev-parse", "HEAD")


def credential_helper(password: str) -> dict[str, str]:
    """Return the variables that give git a credential helper, as a worker's environment would."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": f"!f() {{ echo username={USER}; echo password=$THE_PASSWORD; }}; f",
        "THE_PASSWORD": password,
    }


def stand_in_ssh(folder: Path) -> dict[str, str]:
    """Return the variables that make git run what it asks a remote shell for right here, and note it in ``ssh.log``."""
    script = folder / "stand-in-ssh"
    script.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -G ] && exit 1\n'
        f'echo "$@" >> "{folder}/ssh.log"\n'
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"GIT_SSH_COMMAND": str(script)}


def plain_environment(home: Path, **more: str) -> dict[str, str]:
    """Return a worker's environment without anything of this machine's user."""
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", **more}
