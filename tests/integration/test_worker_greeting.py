"""What a worker that starts does for the workspaces that outlived the one before."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import httpx

from activities.backends.local import LocalBackend
from messages.keys import create_keys
from messages.statuses import BackendKind, Readiness
from tests.support.callback_api import CallbackApi, Reply
from tests.support.hosts import make_spec, make_task
from workers.worker import greet_workspaces


async def test_a_workspace_that_waits_to_report_does_so_at_once(tmp_path: Path) -> None:
    """S21: one that found nobody for long has pauses of half a minute, which nobody has to wait out."""
    keys = create_keys(tmp_path / "keys.json")
    backend = LocalBackend(tmp_path / "home", environ=os.environ, stop_grace_seconds=5)
    task = make_task(BackendKind.LOCAL, readiness=Readiness.CALLBACK, heartbeat_interval="1h")
    with CallbackApi() as api:
        down = True
        api.answer = lambda callback: Reply(503 if down and callback.kind != "heartbeat" else 200)
        spec = make_spec(task, None, api_url=api.url)
        compute = spec.compute
        digest = keys.agent_token_sha256(compute.workspace_id, compute.attempt)
        await backend.provision(replace(spec, agent_token_sha256=digest))
        try:
            # After the third refusal the pause is 4 s or more.
            await asyncio.to_thread(
                api.wait_for, lambda: sum(callback.kind == "ready" for callback in api.received) == 3
            )
            down = False
            async with httpx.AsyncClient() as http:
                await greet_workspaces(http, keys, [backend])
            await asyncio.to_thread(api.wait_for, lambda: api.count("ready") == 1, 2)
        finally:
            await backend.destroy(compute)


async def test_one_that_does_not_answer_keeps_nobody(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys.json")
    backend = LocalBackend(tmp_path / "home", environ=os.environ, stop_grace_seconds=5)
    spec = make_spec(make_task(BackendKind.LOCAL), None)
    await backend.provision(spec)  # accepts a token of another installation
    try:
        async with httpx.AsyncClient() as http:
            await greet_workspaces(http, keys, [backend])
    finally:
        await backend.destroy(spec.compute)
