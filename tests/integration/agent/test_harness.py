"""The harness server of a workspace: started by the agent, watched, relayed to, started anew."""

import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import harness_server
from tests.support.agent_process import TOKEN, AgentProcess
from tests.support.callback_api import CallbackApi
from tests.support.stack import Gate

Make = Callable[..., AgentProcess]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def with_harness(make: Make, tmp_path: Path) -> Callable[..., AgentProcess]:
    """Make an agent with a harness server; ``faults`` as the server knows them."""

    def with_harness(*faults: str, **config: Any) -> AgentProcess:
        state = tmp_path / "harness"
        state.mkdir(exist_ok=True)
        env = {"HARNESS_ADDR": "127.0.0.1:{port}", "HARNESS_STATE": str(state), "HARNESS_FAULTS": ",".join(faults)}
        harness = {"command": [sys.executable, harness_server.__file__], "env": env, **config.pop("harness", {})}
        return make(harness=harness, **config)

    return with_harness


def server_of(agent: AgentProcess) -> int:
    [pid] = [pid for pid in agent.living() if harness_server.__file__ in Path(f"/proc/{pid}/cmdline").read_text()]
    return pid


def test_the_workspace_is_ready_when_its_harness_is_and_v1_leads_to_it(with_harness: Make, api: CallbackApi) -> None:
    """S15"""
    agent = with_harness(setup=["touch set-up"]).start()
    api.wait_for(lambda: api.count("ready"))
    api.wait_for(lambda: api.count("boot-log") == 5)
    steps = [c.body["step"] for c in api.accepted if c.kind == "boot-log"]
    assert steps == ["setup[0]", "setup[0]", "harness", "harness", "listening"]
    started = agent.request("POST", "/v1/runs", {"prompt": "say hello", "conversation_id": "s-1"})
    assert (started.status, started.body["status"]) == (202, "queued")
    listed = agent.request("GET", "/v1/conversations/s-1/runs")
    assert [run["id"] for run in listed.body["runs"]] == [started.body["run_id"]]
    missing = agent.request("GET", "/v1/runs/unknown")
    assert (missing.status, missing.body["error"]["code"]) == (404, "not_found")
    assert agent.request("GET", "/v1/runs/unknown", token="another").status == 401
    assert agent.terminate() == 0
    assert agent.living() == []


def test_an_exit_before_ready_is_reported_at_once_with_the_harnesss_own_words(
    with_harness: Make, api: CallbackApi
) -> None:
    """S14"""
    agent = with_harness("exit at start").start()
    api.wait_for(lambda: api.count("provisioning-failed"))
    failed = api.find("provisioning-failed")
    assert "the harness exited with 1 before it was ready" in failed["error_message"]
    assert "no provider configured: set OPENAI_API_KEY" in failed["log_tail"]
    api.wait_for(lambda: [c for c in api.accepted if c.body.get("status") == "failed"])
    entry = next(c.body for c in api.accepted if c.body.get("status") == "failed")
    assert (entry["step"], "OPENAI_API_KEY" in entry["detail"]) == ("harness", True)
    health = agent.request("GET", "/healthz")
    assert (health.status, health.body["status"]) == (503, "failed")
    assert agent.request("POST", "/v1/runs", {"prompt": "x"}).status == 503


def test_a_harness_that_cannot_be_started_says_why(with_harness: Make, api: CallbackApi) -> None:
    """S14"""
    with_harness(harness={"command": ["no-such-harness"]}).start()
    api.wait_for(lambda: api.count("provisioning-failed"))
    assert (
        "cannot start the harness 'no-such-harness': No such file" in api.find("provisioning-failed")["error_message"]
    )


def test_a_harness_that_is_not_healthy_is_not_ready_and_health_says_what_it_answers(
    with_harness: Make, api: CallbackApi
) -> None:
    """S15: its process runs and its port is open."""
    agent = with_harness("unhealthy").start()

    def step() -> str:
        return agent.request("GET", "/healthz").body["step"]

    api.wait_for(lambda: "answered 503" in step())
    assert "models are loading" in step()
    assert api.count("ready") == 0
    agent.terminate()
    assert agent.living() == []


def test_its_end_after_ready_is_noticed_at_once(with_harness: Make, api: CallbackApi) -> None:
    """S28: the next heartbeat is 15 s away; the end itself makes the agent beat."""
    agent = with_harness().start()
    api.wait_for(lambda: api.count("ready"))
    os.kill(server_of(agent), signal.SIGKILL)
    api.wait_for(lambda: [c for c in api.accepted if c.body.get("state") == "degraded"])
    beat = next(c.body for c in api.accepted if c.body.get("state") == "degraded")
    assert beat["reason"] == "the harness was killed by SIGKILL"
    health = agent.request("GET", "/healthz")
    assert (health.status, health.body["status"], health.body["error"]) == (503, "failed", beat["reason"])
    assert "listening on" in health.body["log_tail"]


def test_a_stream_of_events_comes_as_it_is_made_and_breaks_off_with_the_harness(
    with_harness: Make, api: CallbackApi, tmp_path: Path
) -> None:
    """S28"""
    agent, gate = with_harness().start(), Gate(tmp_path)
    api.wait_for(lambda: api.count("ready"))
    prompt = f"say hello\nread {gate}\ndie"
    run = agent.request("POST", "/v1/runs", {"prompt": prompt}).body["run_id"]
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
    connection.request("GET", f"/v1/runs/{run}/events", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    while b"assistant.message" not in response.readline():
        pass
    gate.open()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    gate.close()
    connection.close()
    api.wait_for(lambda: [c for c in api.accepted if c.body.get("state") == "degraded"])  # the agent has seen it too
    assert agent.request("GET", "/healthz").body["error"] == "the harness exited with 7"


def test_a_reader_that_leaves_ends_its_stream_in_the_harness(with_harness: Make, api: CallbackApi) -> None:
    agent = with_harness().start()
    api.wait_for(lambda: api.count("ready"))
    port = int((agent.state / "harness.log").read_text().partition("listening on ")[2].split()[0])
    run = agent.request("POST", "/v1/runs", {"prompt": "hang"}).body["run_id"]
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
    connection.request("GET", f"/v1/runs/{run}/events", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    response.readline()
    assert _connections_to(port) == 1
    response.close()
    connection.close()
    api.wait_for(lambda: _connections_to(port) == 0)


def test_a_reader_that_leaves_a_harness_that_hangs_leaves_nothing_behind(with_harness: Make, api: CallbackApi) -> None:
    """S28: each look at it would cost the agent a thread and a connection."""
    agent = with_harness().start()
    api.wait_for(lambda: api.count("ready"))
    port = int((agent.state / "harness.log").read_text().partition("listening on ")[2].split()[0])
    server = server_of(agent)
    os.kill(server, signal.SIGSTOP)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
        connection.request("GET", "/v1/runs/any", headers={"Authorization": f"Bearer {TOKEN}"})
        api.wait_for(lambda: _connections_to(port) == 1)
        connection.close()
        api.wait_for(lambda: _connections_to(port) == 0)
    finally:
        os.kill(server, signal.SIGCONT)


def _connections_to(port: int) -> int:
    """Count the established connections to a port of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(remote.rpartition(":")[2], 16) == port and state == "01" for _, _, remote, state, *_ in lines)


def test_it_is_started_anew_on_demand_and_the_old_one_is_gone_first(with_harness: Make, api: CallbackApi) -> None:
    """S27: so that a run whose answer was lost cannot go on beside its repeat."""
    agent = with_harness("no store").start()
    api.wait_for(lambda: api.count("ready"))
    before = server_of(agent)
    agent.request("POST", "/v1/runs", {"prompt": "run sleep 1000", "conversation_id": "s-1"})
    assert agent.request("POST", "/harness/restart").status == 200
    after = server_of(agent)
    assert after != before
    assert [pid for pid in agent.living() if pid != after] == []
    assert agent.request("GET", "/healthz").status == 200
    assert api.count("ready") == 1


def test_secrets_reach_the_harness_and_nobody_else(
    with_harness: Make, api: CallbackApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S37"""
    monkeypatch.setenv("HARNESS_TOKEN", "the-token")
    harness = {"token_env": "HARNESS_TOKEN", "secret_env": ["HARNESS_TOKEN"]}
    command = 'echo "setup sees ${HARNESS_TOKEN:-nothing}" > seen'
    agent = with_harness(setup=[command])
    agent.config["harness"] |= harness
    agent.config["harness"]["env"]["HARNESS_FAULTS"] = "needs token"
    agent.start()
    api.wait_for(lambda: api.count("ready"))
    assert (agent.checkout / "seen").read_text() == "setup sees nothing\n"
    assert agent.request("POST", "/v1/runs", {"prompt": "say x"}).status == 202
    agent.session("s-1", "echo ${HARNESS_TOKEN:-nothing}")
    assert agent.finished("s-1")["summary"] == "nothing"
    assert "the-token" not in (agent.folder / "config.json").read_text()
    assert "the-token" not in json.dumps([c.body for c in api.received])


def test_a_port_that_is_taken_fails_the_boot_instead_of_talking_to_a_stranger(
    with_harness: Make, api: CallbackApi
) -> None:
    """S23"""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with_harness(harness={"port": port}).start()
        api.wait_for(lambda: api.count("provisioning-failed"))
    assert api.find("provisioning-failed")["error_message"] == (
        f"port {port}, where the harness is to listen, cannot be used: Address already in use"
    )


def test_a_fixed_port_and_secrets_in_the_configuration_are_used(with_harness: Make, api: CallbackApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = {"port": port, "token_env": "HARNESS_TOKEN", "secrets": {"HARNESS_TOKEN": "the-token"}}
    agent = with_harness()
    agent.config["harness"] |= more
    agent.config["harness"]["env"]["HARNESS_FAULTS"] = "needs token"
    agent.start()
    api.wait_for(lambda: api.count("ready"))
    assert f"listening on {port}\n" in (agent.state / "harness.log").read_text()
    assert agent.request("POST", "/v1/runs", {"prompt": "say x"}).status == 202
