"""A Docker registry at the wire (the distribution API, version 2): what it offers is made here, one layer an image."""

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TYPES = "application/vnd.docker"


class Registry:
    """Serves images on loopback, which Docker takes without TLS. ``secret`` is an image that needs credentials."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[str, bytes] = {}
        self.manifests_served = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry._answer(self)

            do_HEAD = do_GET  # noqa: N815 - the base class's name

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def offer(self, name: str, tag: str) -> str:
        """Offer an image with one file and return its full name."""
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            entry = tarfile.TarInfo("file")
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"here"))
        content = layer.getvalue()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
        }
        raw = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_TYPES}.distribution.manifest.v2+json",
            "config": {"mediaType": f"{_TYPES}.container.image.v1+json", **self._blob(raw)},
            "layers": [{"mediaType": f"{_TYPES}.image.rootfs.diff.tar", **self._blob(content)}],
        }
        text = json.dumps(manifest).encode()
        for reference in (tag, _digest(text)):
            self._manifests[f"/v2/{name}/manifests/{reference}"] = text
        return f"{self.address}/{name}:{tag}"

    def _blob(self, content: bytes) -> dict[str, Any]:
        self._blobs[_digest(content)] = content
        return {"size": len(content), "digest": _digest(content)}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        if path.startswith("/v2/secret/"):
            self._send(request, 401, _error("UNAUTHORIZED", "authentication required"), "application/json")
        elif path == "/v2/":
            self._send(request, 200, b"{}", "application/json")
        elif path in self._manifests:
            self.manifests_served += request.command == "HEAD"
            self._send(request, 200, self._manifests[path], f"{_TYPES}.distribution.manifest.v2+json")
        elif (digest := path.rpartition("/")[2]) in self._blobs:
            self._send(request, 200, self._blobs[digest], "application/octet-stream")
        else:
            self._send(request, 404, _error("MANIFEST_UNKNOWN", "manifest unknown"), "application/json")

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        if kind.endswith("manifest.v2+json"):
            request.send_header("Docker-Content-Digest", _digest(body))
        if status == 401:
            request.send_header("WWW-Authenticate", 'Basic realm="secret"')
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
