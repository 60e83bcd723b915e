"""A Docker daemon that takes nobody in without a certificate, and one that is named by a context."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from activities.backends.docker_engine import Docker
from activities.errors import BackendUnusable
from tests.integration.containers.conftest import Workshop
from tests.integration.containers.test_container_life import run
from tests.support.certificates import Authority
from tests.support.docker import Daemon, import_image, running_daemon


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("tests")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """The folder of a client's certificate."""
    return authority.issue(tmp_path_factory.mktemp("tls") / "client")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[tuple[Daemon, str]]:
    """A daemon, and the address at which it wants certificates."""
    with secured_daemon(authority.issue(tmp_path_factory.mktemp("tls") / "server", "127.0.0.1")) as (daemon, address):
        import_image(daemon)
        yield daemon, address


@contextmanager
def secured_daemon(own: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon with this certificate, and the address at which it wants one of the same authority."""
    with running_daemon() as daemon:
        daemon.stop()
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        files = ("--tlscacert", own / "ca.pem", "--tlscert", own / "cert.pem", "--tlskey", own / "key.pem")
        daemon.start("--tlsverify", *map(str, files), "--host", address)
        yield daemon, address


def refusal(**environ: str) -> str:
    """Return what is said of a daemon that cannot be used; what it is tells that it is not tried again."""
    docker = Docker(environ)
    with pytest.raises(BackendUnusable) as told:
        docker.call_blocking(lambda client: client.ping())
    docker.close()
    return str(told.value)


async def test_a_workspace_lives_behind_tls(
    workshop: Workshop,
    secured: tuple[Daemon, str],
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other authorities that this machine believes do not count."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority("others").issue(tmp_path / "others") / "ca.pem"))
    daemon, address = secured
    environ = {"DOCKER_HOST": address, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    workshop.daemon = daemon
    backend, spec = workshop.backend(environ=environ, public_url="http://192.0.2.1"), workshop.spec()
    assert await backend.check(spec.task) is None
    handle = await backend.provision(spec)
    try:
        await run(handle.harness_url, spec, "echo new > new.txt")
        kept = await backend.save_result(spec.compute, None)
        assert kept
        assert kept.result.files_changed == 1
    finally:
        await backend.destroy(spec.compute)
    assert daemon.client().containers(all=True) == []


def test_certificates_that_do_not_fit_are_told(
    secured: tuple[Daemon, str], certificates: Path, tmp_path: Path, authority: Authority
) -> None:
    """S37: nothing is sent to who cannot prove who it is, DOCKER_TLS_VERIFY or not."""
    _, address = secured
    folders = {"DOCKER_HOST": address, "DOCKER_TLS_VERIFY": "1"}
    stranger = Authority("strangers").issue(tmp_path / "stranger")
    for verify in ({"DOCKER_TLS_VERIFY": "1"}, {"DOCKER_TLS_VERIFY": ""}, {}):
        said = refusal(DOCKER_HOST=address, DOCKER_CERT_PATH=str(stranger), **verify)
        assert f"Docker at {address}: its certificate does not fit" in said
        assert f"correct ca.pem in {stranger}" in said
    shutil.copy(certificates / "ca.pem", stranger)
    said = refusal(**folders, DOCKER_CERT_PATH=str(stranger))
    assert "it does not take our certificate" in said
    assert f"correct cert.pem and key.pem in {stranger}" in said
    shutil.copy(certificates / "cert.pem", stranger)
    assert "our certificates cannot be used" in refusal(**folders, DOCKER_CERT_PATH=str(stranger))
    (stranger / "ca.pem").write_text("no certificate")
    assert "our certificates cannot be used" in refusal(**folders, DOCKER_CERT_PATH=str(stranger))
    (stranger / "key.pem").unlink()
    said = refusal(**folders, DOCKER_CERT_PATH=str(stranger))
    assert said == (
        f"the certificates for Docker at {address} are not all there; put ca.pem, cert.pem and key.pem into {stranger}"
    )
    said = refusal(DOCKER_HOST=address)
    assert "it wants TLS" in said
    assert "set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH" in said


def test_another_machine_s_name_is_told(certificates: Path, authority: Authority, tmp_path: Path) -> None:
    own = authority.issue(tmp_path / "server", "192.0.2.1")
    with secured_daemon(own) as (_, address):
        said = refusal(DOCKER_HOST=address, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(certificates))
        assert "its certificate does not fit" in said
        assert "or name the host as its certificate does" in said


def test_a_context_says_where_and_with_which_certificates(
    secured: tuple[Daemon, str], certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = secured
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "there"}))
    called = sha256(b"there").hexdigest()
    meta, tls = tmp_path / "contexts/meta" / called, tmp_path / "contexts/tls" / called / "docker"
    meta.mkdir(parents=True)
    endpoints = {"docker": {"Host": address, "SkipTLSVerify": False}}
    (meta / "meta.json").write_text(json.dumps({"Name": "there", "Metadata": {}, "Endpoints": endpoints}))
    shutil.copytree(certificates, tls)
    for environ in ({"DOCKER_CONTEXT": "there"}, {"PATH": ""}):
        docker = Docker(environ)
        assert docker.address == address
        assert docker.call_blocking(lambda client: client.ping())
        docker.close()
    assert refusal(DOCKER_CONTEXT="nowhere") == "there is no Docker context 'nowhere'; run: docker context ls"
    (meta / "meta.json").write_text("{")
    assert "Docker context 'there' cannot be read" in refusal(PATH="")
