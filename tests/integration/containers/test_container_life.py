"""Backend ``container``: a workspace's life on a real Docker daemon."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from activities.agent_client import AgentClient
from activities.backends.container_spec import Ownership
from activities.backends.contract import WorkspaceSpec
from activities.backends.docker_containers import Containers
from activities.errors import ProvisionFailed
from activities.processes import find_all
from messages.statuses import FailureSource, Readiness
from tests.integration.containers.conftest import INSTALLATION, Workshop
from tests.support.agent_process import TOKEN
from tests.support.audit import audit_of_this_thread
from tests.support.docker import UNTIL_TOLD, Daemon, build_image, end, snapshot
from tests.support.git_repositories import files_of, git
from tests.support.hosts import yes
from tests.support.stack import command_lines, unique


async def run(url: str, spec: WorkspaceSpec, script: str) -> None:
    """Run a script as a session of the workspace's agent, to its end."""
    async with httpx.AsyncClient(trust_env=False) as client:
        agent = AgentClient(client, url, TOKEN)
        await agent.wait_until_booted(20, worth_waiting=yes)
        name = unique("s")
        await agent.create_session(name, ["/bin/sh", "-c", script], {})
        session = await agent.session(name, wait_seconds=20)
        assert session
        assert session.exit_code == 0, session


async def test_a_workspace_comes_up_calls_back_and_goes(workshop: Workshop, daemon: Daemon) -> None:
    """S23"""
    backend, spec = workshop.backend(), workshop.spec()
    assert await backend.check(spec.task) is None
    handle = await backend.provision(spec)
    try:
        assert handle.readiness is Readiness.CALLBACK
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("ready") == 1)
        assert workshop.api.accepted[0].token == spec.callback_token
        await run(handle.harness_url, spec, "true")
        found = await backend.inspect(spec.compute)
        assert (found.exists, found.alive) == (True, True)
        assert spec.compute.name in found.log_tail
        assert await backend.list_owned() == [spec.compute]
    finally:
        await backend.destroy(spec.compute)
    assert not (await backend.inspect(spec.compute)).exists
    await backend.destroy(spec.compute)  # what is gone is success
    assert list((workshop.folder / "home/containers").iterdir()) == []


async def test_it_can_do_no_more_than_it_must(workshop: Workshop, daemon: Daemon) -> None:
    """S23: no privileges and capabilities, the limits of its template, and its port on loopback alone."""
    spec = workshop.spec(container={"cpus": 0.5, "memory": "256m", "pids": 64})
    backend = workshop.backend()
    handle = await backend.provision(spec)
    try:
        found = daemon.client().inspect_container(spec.compute.name)
        host = found["HostConfig"]
        assert (host["Privileged"], host["CapDrop"], host["SecurityOpt"]) == (False, ["ALL"], ["no-new-privileges"])
        assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 256 * 1024**2, 64)
        ports = [binding for bindings in found["NetworkSettings"]["Ports"].values() for binding in bindings or ()]
        assert [binding["HostIp"] for binding in ports] == ["127.0.0.1"]
        for line in ("^CapEff:.0*$", "^NoNewPrivs:.1$"):
            await run(handle.harness_url, spec, f"grep -q '{line}' /proc/self/status")
    finally:
        await backend.destroy(spec.compute)


async def test_no_secret_can_be_seen_from_outside(workshop: Workshop, daemon: Daemon) -> None:
    """S37: neither in what Docker tells everybody who may use it, nor among the processes of the host."""
    backend, spec = workshop.backend(), workshop.spec()
    handle = await backend.provision(spec)
    try:
        await run(handle.harness_url, spec, 'test "$(stat -c %a /taskrunner/config.json)" = 600')
        secrets = (spec.callback_token, TOKEN)
        told = json.dumps(daemon.client().inspect_container(spec.compute.name))
        shown = "\n".join(command_lines())
        assert "/taskrunner/config.json" in shown
        assert not [secret for secret in secrets if secret in told or secret in shown]
    finally:
        await backend.destroy(spec.compute)


async def test_a_user_of_the_image_s_own_owns_what_is_put_in(workshop: Workshop, daemon: Daemon) -> None:
    """By a name that the image's own files explain, in the first workspace of the image and in later ones."""
    worker = "RUN groupadd --gid 4712 crew && useradd --create-home --uid 4711 worker"
    backend = workshop.backend()
    for user, group in (("worker", 4711), ("worker", 4711), ("worker:crew", 4712)):
        spec = workshop.spec(image=build_image(daemon, worker, f"USER {user}"))
        handle = await backend.provision(spec)
        try:
            mine = f'test "$(id -u) $(id -g)" = "4711 {group}" && test "$(stat -c "%u %g" .git/HEAD)" = "4711 {group}"'
            await run(handle.harness_url, spec, f"{mine} && touch made && test -O .")
            kept = await backend.save_result(spec.compute, None)
            assert kept
            assert kept.result.files_changed == 1
        finally:
            await backend.destroy(spec.compute)


async def test_provisioning_again_adopts_what_is_there(workshop: Workshop, daemon: Daemon) -> None:
    """S20, S21: by another worker too, which knows nothing of the first one's files."""
    spec = workshop.spec()
    first = await workshop.backend().provision(spec)
    try:
        before = daemon.client().inspect_container(spec.compute.name)["Id"]
        again = await workshop.backend().provision(spec)
        elsewhere = await workshop.backend(home="other").provision(spec)
        assert first == again == elsewhere
        assert daemon.client().inspect_container(spec.compute.name)["Id"] == before
    finally:
        await workshop.backend().destroy(spec.compute)


async def test_what_was_created_before_a_crash_is_adopted(workshop: Workshop, daemon: Daemon) -> None:
    """S22: the container exists, nothing is in it yet, and nobody has stored anything of it."""
    spec = workshop.spec()
    crashed = workshop.backend()
    await Containers(crashed.docker, Ownership(INSTALLATION, "host-a")).create(spec)
    before = daemon.client().inspect_container(spec.compute.name)["Id"]
    backend = workshop.backend()
    handle = await backend.provision(spec)
    try:
        await run(handle.harness_url, spec, "true")
        assert daemon.client().inspect_container(spec.compute.name)["Id"] == before
    finally:
        await backend.destroy(spec.compute)


async def test_two_at_once_make_one(workshop: Workshop, daemon: Daemon) -> None:
    """S20, S22: what Docker answers with a conflict is looked at, and is ours."""
    spec = workshop.spec()
    first, second = workshop.backend(), workshop.backend(home="other")
    handles = await asyncio.gather(first.provision(spec), second.provision(spec))
    try:
        assert handles[0] == handles[1]
        assert snapshot(daemon)["containers"] == {f"/{spec.compute.name}"}
    finally:
        await first.destroy(spec.compute)
        await second.destroy(spec.compute)


async def test_another_s_container_of_that_name_is_left_alone(workshop: Workshop, daemon: Daemon) -> None:
    """S29"""
    backend, spec = workshop.backend(), workshop.spec()
    client = daemon.client()
    theirs = client.create_container(spec.template.container.image, ["sleep", "60"], name=spec.compute.name)["Id"]
    try:
        with pytest.raises(ProvisionFailed, match=f"a container '{spec.compute.name}' that is not ours; rename it"):
            await backend.provision(spec)
        await backend.destroy(spec.compute)
        assert client.inspect_container(spec.compute.name)["Id"] == theirs
        assert await backend.list_owned() == []
    finally:
        client.remove_container(theirs)


async def test_one_that_ends_at_once_fails_with_its_log(workshop: Workshop, daemon: Daemon) -> None:
    """S14: a worker that comes back finds it ended; the other way is the watcher's."""
    image = build_image(daemon, f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', UNTIL_TOLD])}")
    spec = workshop.spec(image=image, container={"workspace_agent": "image"})
    backend = workshop.backend()
    await backend.provision(spec)
    await end(daemon, spec.compute)
    found = await backend.inspect(spec.compute)
    assert (found.exists, found.alive, found.exit_code) == (True, False, 3)
    assert found.ending == "its container exited with 3"
    with pytest.raises(ProvisionFailed, match="its container exited with 3") as failed:
        await backend.provision(spec)
    assert failed.value.source is FailureSource.EXIT
    assert "no key found" in failed.value.detail
    assert not (await backend.inspect(spec.compute)).exists


@pytest.mark.parametrize("with_repository", [True, False], ids=["clone", "empty"])
async def test_what_the_agent_changed_is_kept(workshop: Workshop, repository: Path, with_repository: bool) -> None:
    """S44: the image has no git; the checkout is made, and its change found, on the host."""
    backend, spec = workshop.backend(), workshop.spec(repository if with_repository else None)
    base = spec.base_commit
    assert await backend.check(spec.task) == base
    handle = await backend.provision(spec)
    try:
        await run(
            handle.harness_url,
            spec,
            "! command -v git && echo new > new.txt && ln -s /etc/passwd link",
        )
        with audit_of_this_thread() as heard:
            saved = await backend.save_result(spec.compute, base)
        assert "shutil.rmtree" not in {event for event, _ in heard}  # a whole checkout, which others would wait for
    finally:
        await backend.destroy(spec.compute)
    assert saved
    assert saved.bundle
    assert saved.result.files_changed == 2
    bundle = workshop.folder / "result.bundle"
    bundle.write_bytes(saved.bundle)
    reader = repository if with_repository else workshop.folder / "read"
    if not with_repository:
        git(workshop.folder, "init", "--quiet", "read")
    git(reader, "fetch", "--quiet", str(bundle), f"{saved.result.branch}:{saved.result.branch}")
    files = files_of(reader, saved.result.branch)
    assert (files["new.txt"], files["link"]) == ("new", "/etc/passwd")
    if with_repository:
        assert git(reader, "rev-parse", f"{saved.result.branch}^") == base


async def test_no_change_is_no_result(workshop: Workshop, repository: Path) -> None:
    """S44"""
    backend, spec = workshop.backend(), workshop.spec(repository)
    await backend.provision(spec)
    try:
        assert await backend.save_result(spec.compute, spec.base_commit) is None
    finally:
        await backend.destroy(spec.compute)


async def test_an_agent_cannot_make_the_host_run_anything(workshop: Workshop, repository: Path) -> None:
    """S37: git on the host meets the agent's repository without its configuration, hooks and links."""
    proof = workshop.folder / "proof"
    evil = f"touch {proof}"
    backend, spec = workshop.backend(), workshop.spec(repository)
    handle = await backend.provision(spec)
    script = f"""
        printf '[core]\\n\\tfsmonitor = {evil}\\n[filter "x"]\\n\\tclean = {evil}; cat\\n' >> .git/config
        printf '#!/bin/sh\\n{evil}\\n' > .git/hooks/post-index-change; chmod +x .git/hooks/*
        echo '* filter=x' > .gitattributes; echo new > new.txt
        mkdir nested && cp -r .git nested/.git && echo inner > nested/inner.txt
        mkdir other && echo 'gitdir: /' > other/.git && echo more > other/more.txt
    """
    try:
        await run(handle.harness_url, spec, script)
        kept = await backend.save_result(spec.compute, spec.base_commit)
    finally:
        await backend.destroy(spec.compute)
    assert not proof.exists()
    assert kept
    assert kept.patch
    assert all(name in kept.patch for name in (b"new.txt", b"nested/inner.txt", b"other/more.txt"))


async def test_twenty_come_up_at_once(workshop: Workshop, daemon: Daemon) -> None:
    backend = workshop.backend()
    specs = [workshop.spec() for _ in range(20)]
    try:
        handles = await asyncio.gather(*(backend.provision(spec) for spec in specs))
        assert len({handle.harness_url for handle in handles}) == 20
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("ready") == 20, 60)
    finally:
        await asyncio.gather(*(backend.destroy(spec.compute) for spec in specs))


async def test_its_processes_are_gone_with_it(workshop: Workshop) -> None:
    backend, spec = workshop.backend(), workshop.spec()
    handle = await backend.provision(spec)
    await run(handle.harness_url, spec, "setsid sleep 4711 > /dev/null 2>&1 & true")
    await backend.destroy(spec.compute)
    assert await asyncio.to_thread(find_all, spec.compute.name) == []
