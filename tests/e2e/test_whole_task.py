from pathlib import Path
import time, asyncio
from collections.abc import AsyncIterator
import pytest
from tests.support.stack import Stack, Process, Gate, unique

HOST = "whole-host"

@pytest.fixture(scope="module")
async def worker(services: Stack, tmp_path_factory) -> AsyncIterator[Process]:
    async with services.worker(HOST, tmp_path_factory.mktemp("worker") / "home") as worker:
        yield worker

async def test_measure(stack: Stack, worker: Process, repository: Path):
    for i in range(8):
      for kind in ("local", "worktree"):
        t0 = time.monotonic()
        task = await stack.submit("echo hi", **({"repository": (repository, HOST)} if kind=="worktree" else {}))
        t1 = time.monotonic()
        view = await stack.until(task, lambda v: v.status.is_final)
        t2 = time.monotonic()
        await stack.ended(task)
        t3 = time.monotonic()
        h = await stack.history(task)
        print(kind, f"post {t1-t0:.3f} done {t2-t0:.3f} closed {t3-t0:.3f} events {len(h)} {view.status} {view.error}")
        print("   ", [(s.step.value, round((s.at - view.created_at).total_seconds(),3)) for s in view.steps], round((view.finished_at - view.created_at).total_seconds(),3))
    print(h)
