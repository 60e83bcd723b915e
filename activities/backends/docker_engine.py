"""The Docker daemon: how it is found, called without blocking, and what its errors mean.

The ``docker`` SDK is loaded at the first use: a host without containers pays nothing for it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast
from urllib.parse import urlsplit

from activities.errors import ActivityFailure, BackendAway, BackendUnusable, ProvisionFailed, ProvisionInterrupted
from activities.threads import to_its_end
from messages.statuses import FailureSource
from messages.urls import is_loopback_host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

Sdk = Any
"""The SDK's ``APIClient``, whose methods return what Docker's API returns: JSON."""

CALL_SECONDS = 60
DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
_CONNECTIONS = 64
_SAID_CHARS = 500
_LOCAL_SCHEMES = frozenset({"unix", "http+unix", "npipe"})


class Docker:
    """One daemon. ``environ`` says which: ``DOCKER_HOST`` with its TLS variables, else the current Docker context.

    ``timeout``: how many seconds an answer is waited for.
    """

    def __init__(self, environ: Mapping[str, str], *, timeout: float = CALL_SECONDS) -> None:
        self._environ = dict(environ)
        self._timeout = timeout
        self._client: Sdk = None
        self._lock = threading.Lock()

    async def call(self, work: Callable[[Sdk], T]) -> T:
        """Run ``work`` in a thread, to its end; raise what :func:`explained` makes of an error that it knows.

        An ``APIError`` that only the caller can judge comes through.
        """
        return await to_its_end(self.call_blocking, work)

    def call_blocking(self, work: Callable[[Sdk], T], *, timeout: float | None = None) -> T:
        """Do what :meth:`call` does, in this thread; with ``timeout`` (seconds) on a connection that waits so long."""
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException

        try:
            if timeout is None:
                return work(self._connected())
            with contextlib.closing(self.connect(timeout=timeout)) as client:
                return work(client)
        except APIError:
            raise
        except (DockerException, RequestException, OSError) as e:
            raise self._away(e) from e

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def connect(self, *, timeout: float | None = CALL_SECONDS) -> Sdk:
        """Return a client of its own; ``timeout`` None waits for ever for an answer."""
        client = _client_class()
        known = self._client  # has asked which version of the API the daemon speaks, which takes it some milliseconds
        version = known.api_version if known else "auto"
        return client(version=version, timeout=timeout, num_pools=_CONNECTIONS, **self._where())

    @property
    def address(self) -> str:
        """Where the daemon is, as a URL."""
        return str(self._where().get("base_url") or DEFAULT_ADDRESS)

    @property
    def remote_host(self) -> str | None:
        """The name of the machine that the daemon runs on; None where that is ours."""
        parts = urlsplit(self.address)
        if parts.scheme in _LOCAL_SCHEMES or not parts.hostname or is_loopback_host(parts.hostname):
            return None
        return parts.hostname

    def _connected(self) -> Sdk:
        with self._lock:
            found = self._client
        if found is not None:
            return found
        made = self.connect(timeout=self._timeout)  # not under the lock: others would queue behind one that hangs
        with self._lock:
            if self._client is None:
                self._client = made
            found = self._client
        if found is not made:
            made.close()
        return found

    def _where(self) -> dict[str, Any]:
        """Return the SDK's arguments. Raises ``BackendUnusable`` where a context or certificates cannot be used."""
        found = self._of_environment() if self._environ.get("DOCKER_HOST") else self._of_context()
        if str(found.get("base_url") or "").startswith("ssh://"):
            found["use_ssh_client"] = True  # the user's own ssh, with its keys and configuration
        return found

    def _of_environment(self) -> dict[str, Any]:
        from docker.errors import TLSParameterError
        from docker.utils import kwargs_from_env

        # Without DOCKER_TLS_VERIFY, the SDK would believe any certificate of whoever answers there.
        environ = (
            {**self._environ, "DOCKER_TLS_VERIFY": "1"} if self._environ.get("DOCKER_CERT_PATH") else self._environ
        )
        try:
            return cast("dict[str, Any]", kwargs_from_env(environment=environ))
        except TLSParameterError as e:
            raise BackendUnusable(
                f"the certificates for Docker at {self._environ['DOCKER_HOST']} are not all there; put ca.pem, "
                f"cert.pem and key.pem into {self._certificates}"
            ) from e

    def _of_context(self) -> dict[str, Any]:
        from docker import ContextAPI
        from docker.context.config import get_current_context_name

        name = self._environ.get("DOCKER_CONTEXT") or get_current_context_name()
        try:
            context: Any = ContextAPI.get_context(name)
        except Exception as e:  # the SDK raises plain ones
            raise BackendUnusable(f"Docker context {name!r} cannot be read ({e}); run: docker context ls") from e
        if context is None:
            raise BackendUnusable(f"there is no Docker context {name!r}; run: docker context ls")
        found = {"base_url": context.Host} if context.Host else {}
        return {**found, "tls": context.TLSConfig} if found and context.TLSConfig else found

    @property
    def _certificates(self) -> str:
        """Where our certificate is, and that of the authority which we believe."""
        if self._environ.get("DOCKER_HOST"):
            return self._environ.get("DOCKER_CERT_PATH") or "~/.docker"
        return f"Docker context {self._environ.get('DOCKER_CONTEXT') or 'that is current'}"

    def _away(self, e: BaseException) -> ActivityFailure:
        text = str(e)
        if "PermissionError" in text or "Permission denied" in text:
            return BackendUnusable(
                f"the worker may not use Docker's socket {self.address}: permission denied; add its user to the group "
                "docker (usermod -aG docker USER) and start the worker again"
            )
        if tls := _tls_trouble(text):
            said, mend = tls
            where = self._certificates
            return BackendUnusable(f"Docker at {self.address}: {said} ({reason_of(e)}); {mend.format(where=where)}")
        if self.address.startswith("ssh://"):  # what ssh itself says goes to the worker's stderr
            return BackendAway(
                f"Docker does not answer at {self.address} ({reason_of(e)}); see what this says as the worker's user: "
                f"ssh {self.address} docker version"
            )
        return BackendAway(
            f"Docker does not answer at {self.address} ({reason_of(e)}); start it, or set DOCKER_HOST to where it is"
        )


@functools.cache
def _client_class() -> Sdk:
    from docker import APIClient

    class Client(APIClient):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            """Keep to the daemon's own authority: REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE would go before it."""
            verify = self.verify if verify is None else verify
            merged: Any = super().merge_environment_settings(url, proxies, stream, verify, cert)
            return merged

    return Client


_TLS_TROUBLE = (
    (
        "http request to an https server",
        "it wants TLS",
        "set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem",
    ),
    (
        "certificate_verify_failed|hostname mismatch|doesn't match",
        "its certificate does not fit",
        "correct ca.pem in {where}, or name the host as its certificate does",
    ),
    (
        "alert certificate|alert bad certificate|alert unknown ca|alert handshake|alert access denied",
        "it does not take our certificate",
        "correct cert.pem and key.pem in {where}",
    ),
    (
        "wrong_version_number|wrong version number|record layer failure|unknown_protocol",
        "it speaks no TLS",
        "unset DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or correct the port in DOCKER_HOST",
    ),
    (
        "key_values_mismatch|key values mismatch|pem lib|no start line|no_certificate_or_crl_found|invalid path: ",
        "our certificates cannot be used",
        "correct ca.pem, cert.pem and key.pem in {where}",
    ),
)
"""What OpenSSL and the daemon say, what that means, and what mends it."""


def _tls_trouble(text: str) -> tuple[str, str] | None:
    for pattern, meaning, mend in _TLS_TROUBLE:
        if re.search(pattern, text, re.IGNORECASE):
            return meaning, mend
    return None


def reason_of(e: BaseException) -> str:
    """Return the innermost reason of a failed connection, in a few words."""
    text = str(e)
    if told := re.search(r"\[Errno -?\d+\] ([^'\"():]+)['\")]", text):  # within urllib3's own words
        return told[1]
    named = re.findall(r"(?:Error|Exception)\((?:\d+, )?['\"]([^'\"]+)['\"]", text)
    return (named[-1] if named else text.splitlines()[0] if text else type(e).__name__)[:_SAID_CHARS]


def said(e: Exception) -> str:
    """Return what the daemon said, in one line."""
    text = getattr(e, "explanation", None) or str(e)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join(str(text).split())[:_SAID_CHARS]


def status_of(e: Exception) -> int:
    """Return the HTTP status of the daemon's answer; 0 where there was none."""
    return int(getattr(e, "status_code", None) or 0)


class FailureFields(TypedDict):
    """What every failure that is Docker's has in common: its words are the detail."""

    source: FailureSource
    detail: str


_NO_PROGRAM = re.compile(r"executable file not found|no such file or directory|not a directory", re.IGNORECASE)
_TAKEN = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_NO_PROGRAM_MAY_RUN = re.compile(r"permission denied|exec format error", re.IGNORECASE)


def explained(e: Exception, *, doing: str, image: str, command: str = "") -> ProvisionFailed:
    """Return what an error of the daemon means for the workspace that was being made; ``doing`` is what failed.

    The one place that tells errors which may pass from those that stay.
    """
    text = said(e)
    low = text.lower()
    fields = FailureFields(source=FailureSource.PROVIDER, detail=text)
    if "no space left on device" in low:
        return ProvisionFailed(
            f"{doing} failed: no space left on Docker's disk; free some (docker system df, docker system prune)",
            **fields,
        )
    if _TAKEN.search(text):
        return ProvisionInterrupted(f"{doing} failed: its port is taken ({text}); another one is tried", **fields)
    if "network" in low and ("not found" in low or "could not be found" in low):
        return ProvisionFailed(f"{doing} failed: {text}; see: docker network ls; correct container.network", **fields)
    if "exec" in low or "oci runtime" in low or "runc" in low:
        if _NO_PROGRAM.search(text):
            return ProvisionFailed(
                f"image {image} has no program {command!r} (exit code 127); correct the image, or container.command",
                **fields,
            )
        if _NO_PROGRAM_MAY_RUN.search(text):
            return ProvisionFailed(
                f"image {image} cannot run {command!r} (exit code 126): {text}; make it executable, for this machine's "
                "kind of processor",
                **fields,
            )
    if status_of(e) >= 500:
        return ProvisionInterrupted(f"{doing} failed: Docker said: {text}", **fields)
    return ProvisionFailed(f"{doing} failed: Docker said: {text}; correct the template's container section", **fields)
