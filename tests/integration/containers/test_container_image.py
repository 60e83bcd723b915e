"""The image of ``deploy/workspace``: the workspace agent is in it."""

import asyncio
import shutil
from pathlib import Path

from agent.build import build_zipapp
from tests.integration.containers.conftest import Workshop
from tests.support.cli import ROOT
from tests.support.docker import IMAGE, Daemon

NAME = "taskrunner-test:workspace"


async def test_a_workspace_of_the_image_comes_up(workshop: Workshop, daemon: Daemon, tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(ROOT / "deploy/workspace", context)
    build_zipapp(context / "agent.pyz")
    arguments = {"BASE": IMAGE, "PACKAGES": ""}
    for line in daemon.client().build(path=str(context), tag=NAME, buildargs=arguments, decode=True, rm=True):
        assert "error" not in line, line
    backend, spec = workshop.backend(), workshop.spec(image=NAME, container={"workspace_agent": "image"})
    await backend.provision(spec)
    try:
        await asyncio.to_thread(workshop.api.wait_for, lambda: workshop.api.count("ready") == 1)
        top = daemon.client().top(spec.compute.name, ps_args="-eo pid,args")
        assert any("/opt/taskrunner/agent.pyz" in " ".join(line) for line in top["Processes"])
        assert (await backend.save_result(spec.compute, None)) is None
    finally:
        await backend.destroy(spec.compute)
