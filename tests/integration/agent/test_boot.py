"""How the real workspace agent comes up, reports, beats, and comes back after it was killed."""

import ast
import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agent as agent_package
from messages import callbacks
from tests.support import agent_process
from tests.support.agent_process import PYTHON, AgentProcess
from tests.support.callback_api import CallbackApi, Reply

Make = Callable[..., AgentProcess]
WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"


def jwt(exp: float, attempt: int = 1, name: str = "x") -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": exp, "att": attempt, "n": name}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def test_a_request_sent_before_the_agent_has_started_is_answered(make: Make) -> None:
    """S13: the socket listens before the agent does; with nothing to prepare the first request finds it ready."""
    agent = make()
    answers: list[Any] = []
    request = threading.Thread(target=lambda: answers.append(agent.session("s-1", "true")))
    request.start()
    deadline = time.monotonic() + 5
    while b" 01 " not in _sockets_to(agent.port):
        assert time.monotonic() < deadline
    agent.start()
    request.join(10)
    assert answers[0].status == 201


def test_health_is_503_with_the_step_while_setup_runs_and_200_after(make: Make, api: CallbackApi) -> None:
    """S15: the port is open and the process runs, but nothing counts as ready before the setup has ended."""
    agent = make(setup=["echo first", WAIT_FOR_GO]).start()
    api.wait_for(lambda: len([c for c in api.accepted if c.body.get("step") == "setup[1]"]))
    health = agent.request("GET", "/healthz")
    assert (health.status, health.body["status"], health.body["step"]) == (503, "booting", "setup[1]")
    refused = agent.session("s-1", "true")
    assert (refused.status, refused.headers["Content-Type"]) == (503, "application/problem+json")
    assert api.count("ready") == 0
    (agent.checkout / "go").touch()
    api.wait_for(lambda: api.count("ready"))
    health = agent.request("GET", "/healthz")
    assert (health.status, health.body["status"], health.body["state"]) == (200, "ok", "ready")
    assert agent.session("s-1", "true").status == 201
    assert api.find("ready") == {"agent_version": health.body["agent_version"]}
    steps = [(c.body["step"], c.body["status"]) for c in api.accepted if c.kind == "boot-log"]
    assert steps == [
        ("setup[0]", "started"),
        ("setup[0]", "completed"),
        ("setup[1]", "started"),
        ("setup[1]", "completed"),
        ("listening", "completed"),
    ]
    assert {c.token for c in api.received} == {"the-callback-token"}
    assert {c.workspace_id for c in api.received} == {agent.workspace_id}


def test_an_agent_that_nobody_waits_for_announces_no_ready_but_every_failure(make: Make, api: CallbackApi) -> None:
    """S13: a callback that nobody waits for would only lengthen the task's history."""
    agent = make(announces_ready=False).start()
    assert agent.session("s-1", "true").status == 201
    api.wait_for(lambda: api.count("sessions/s-1/finished"))
    assert api.count("ready") == 0
    make(announces_ready=False, setup=["exit 1"]).start()
    api.wait_for(lambda: api.count("provisioning-failed"))


def test_every_callback_is_one_that_the_api_reads(make: Make, api: CallbackApi) -> None:
    """S36: validated by the very models of the API."""
    good, bad = make(setup=["true"]), make(setup=["printf 'no\\000 \\377key'; exit 1"])
    good.start()
    good.session("s-0", "true")
    bad.start()
    api.wait_for(lambda: api.count("ready") and api.count("provisioning-failed"))
    good.session("s-1", "printf '\\000\\377 end'; exit 3")
    good.finished("s-1")
    models = {
        "ready": callbacks.ReadyBody,
        "provisioning-failed": callbacks.ProvisioningFailedBody,
        "boot-log": callbacks.BootLogBody,
        "heartbeat": callbacks.HeartbeatBody,
        "output": callbacks.OutputBody,
        "finished": callbacks.FinishedBody,
    }
    seen: set[str] = set()
    for callback in api.received:
        kind = callback.kind.rpartition("/")[2]
        body = models[kind].model_validate(callback.body)
        assert set(callback.body) <= set(body.model_dump()), "a field that the API does not know"
        seen.add(kind)
    assert seen == set(models)


def test_setup_runs_in_the_checkout_with_the_configured_environment(make: Make, api: CallbackApi) -> None:
    agent = make(setup=['echo "$WHO $TASKRUNNER_COMPUTE" > made'], env={"WHO": "me"}).start()
    api.wait_for(lambda: api.count("ready"))
    assert (agent.checkout / "made").read_text() == f"me {agent.config['name']}\n"


def test_a_failed_setup_is_reported_with_the_end_of_its_log_and_the_agent_stays(make: Make, api: CallbackApi) -> None:
    """S04, S14: the failure comes at once, with what the command said last, 8 KiB at most."""
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; printf 'é\\000 no key' >&2; exit 7"
    agent = make(setup=[script, "touch never"]).start()
    api.wait_for(lambda: api.count("provisioning-failed"))
    body = api.find("provisioning-failed")
    assert body["error_message"].startswith("setup[0] exited with 7: i=0;")
    assert body["log_tail"].endswith("line 2999\né no key")
    assert 8000 < len(body["log_tail"].encode()) <= 8192
    health = agent.request("GET", "/healthz")
    assert (health.status, health.body["status"]) == (503, "failed")
    assert health.body["error"] == body["error_message"]
    assert agent.session("s-1", "true").status == 503
    assert not (agent.checkout / "never").exists()
    api.wait_for(lambda: any(c.body.get("state") == "degraded" for c in api.accepted))
    assert api.count("ready") == 0
    agent.kill()
    agent.start()
    assert agent.request("GET", "/healthz").body["status"] == "failed"
    assert api.count("provisioning-failed") == 1


def test_setup_may_leave_a_service_behind_that_no_session_takes_along(make: Make, api: CallbackApi) -> None:
    agent = make(setup=["(setsid sleep 300 & echo $! > pid)"]).start()
    api.wait_for(lambda: api.count("ready"))
    agent.session("s-1", "sleep 0.1")
    agent.finished("s-1")
    assert int((agent.checkout / "pid").read_text()) in agent.living()


@pytest.mark.parametrize("outage", ["refused", "503", "answer lost"])
def test_ready_survives_a_kill_between_becoming_ready_and_the_answer(make: Make, api: CallbackApi, outage: str) -> None:
    """S12: the API is away when the workspace becomes ready and the agent is killed meanwhile: still delivered."""
    agent = make()
    if outage == "refused":
        api.stop()
    elif outage == "503":
        api.answer = lambda _: Reply(503)
    else:
        api.answer = lambda _: Reply(0)
    agent.start()
    deadline = time.monotonic() + 10
    while agent.request("GET", "/healthz").status != 200:
        assert time.monotonic() < deadline
    agent.kill()
    api.answer = lambda _: Reply()
    api.received.clear()
    if outage == "refused":
        api.start()
    agent.start()
    api.wait_for(lambda: api.count("ready"), 5)
    assert agent.request("GET", "/healthz").status == 200


def test_a_ready_that_was_acknowledged_is_not_sent_again(make: Make, api: CallbackApi) -> None:
    agent = make(setup=["echo once >> ran"]).start()
    api.wait_for(lambda: api.count("ready") and api.count("boot-log") == 3)
    _wait_until(lambda: agent.request("GET", "/healthz").body["pending"] == 0)
    agent.kill()
    beats = api.count("heartbeat")
    agent.start()
    api.wait_for(lambda: api.count("heartbeat") > beats)
    assert agent.request("GET", "/healthz").status == 200
    assert (api.count("ready"), api.count("boot-log")) == (1, 3)
    assert (agent.checkout / "ran").read_text() == "once\n"


def test_an_agent_killed_in_the_setup_repeats_only_what_was_not_done(make: Make, api: CallbackApi) -> None:
    agent = make(setup=["echo one >> ran", f"echo two >> ran; {WAIT_FOR_GO}"]).start()
    _wait_until(lambda: (agent.checkout / "ran").exists() and "two" in (agent.checkout / "ran").read_text())
    agent.kill()
    (agent.checkout / "go").touch()
    agent.start()
    api.wait_for(lambda: api.count("ready"))
    assert (agent.checkout / "ran").read_text() == "one\ntwo\ntwo\n"


def test_sigterm_in_the_setup_reports_no_failure(make: Make, api: CallbackApi) -> None:
    agent = make(setup=["sleep 300"]).start()
    api.wait_for(lambda: api.count("boot-log"))
    assert agent.terminate() == 0
    assert api.count("provisioning-failed") == 0
    assert agent.living() == []


def test_a_boot_log_that_the_api_cannot_take_does_not_hold_up_ready(make: Make, api: CallbackApi) -> None:
    api.answer = lambda c: Reply(503 if c.kind == "boot-log" else 200)
    make().start()
    api.wait_for(lambda: api.count("ready"), 3)


def test_a_heartbeat_that_succeeds_wakes_the_senders_that_wait(make: Make, api: CallbackApi) -> None:
    """S12: what has waited for long leaves with the first heartbeat after the API's return."""
    refuse = [True]
    tries: list[float] = []

    def answer(callback: Any) -> Reply:
        if callback.kind == "ready":
            tries.append(time.monotonic())
        return Reply(503) if refuse[0] else Reply()

    api.answer = answer
    make(heartbeat_interval_seconds=0.4).start()
    api.wait_for(lambda: len(tries) == 3)  # after 1 to 1.5 s, then 2 to 3 s; the next wait is 4 s at least
    refuse[0] = False
    back = time.monotonic()
    api.wait_for(lambda: api.count("ready"), 3)
    assert time.monotonic() - back < 1.5


def test_heartbeats_come_at_once_and_say_how_it_is(make: Make, api: CallbackApi) -> None:
    agent = make(setup=[WAIT_FOR_GO]).start()
    api.wait_for(lambda: api.count("heartbeat"), 5)
    first = api.find("heartbeat")
    assert first["state"] == "booting"
    (agent.checkout / "go").touch()
    api.wait_for(lambda: any(c.body["state"] == "ready" for c in api.accepted if c.kind == "heartbeat"), 5)
    assert first["sessions"] == []
    assert first["pending"] >= 0


def test_heartbeats_keep_their_interval_and_list_the_sessions(make: Make, api: CallbackApi) -> None:
    agent = make(heartbeat_interval_seconds=0.2).start()
    agent.session("s-1", "sleep 300")
    started = time.monotonic()
    before = api.count("heartbeat")
    api.wait_for(lambda: api.count("heartbeat") >= before + 5)
    assert time.monotonic() - started > 0.7
    assert api.accepted[-1].body["sessions"] == ["s-1"] or api.accepted[-1].kind != "heartbeat"
    assert any(c.body.get("sessions") == ["s-1"] for c in api.accepted)


def test_a_refreshed_token_is_used_by_those_who_wait_and_after_a_restart(make: Make, api: CallbackApi) -> None:
    old, new = jwt(time.time() + 1000), jwt(time.time() + 90000)
    seen: list[str] = []

    def answer(callback: Any) -> Reply:
        if callback.kind == "heartbeat":
            return Reply(200, {"refreshed_token": new} if seen else {})
        if callback.kind == "ready":
            seen.append(callback.token)
            return Reply(200 if callback.token == new else 503)
        return Reply()

    api.answer = answer
    agent = make(callback_token=old, heartbeat_interval_seconds=0.3).start()
    api.wait_for(lambda: api.count("ready"))
    assert (seen[0], seen[-1]) == (old, new)
    agent.kill()
    api.received.clear()
    agent.start()
    api.wait_for(lambda: api.received)
    assert api.received[0].token == new
    assert (agent.state / "callback-token").stat().st_mode & 0o777 == 0o600


def test_nothing_is_sent_with_an_expired_token_until_another_comes(make: Make, api: CallbackApi) -> None:
    """Only heartbeats go on: they are how another token would come."""
    api.answer = lambda c: Reply(401)
    agent = make(callback_token=jwt(time.time() - 10), heartbeat_interval_seconds=0.2).start()
    api.wait_for(lambda: len(api.received) > 3)
    assert {c.kind for c in api.received} == {"heartbeat"}
    agent.kill()
    agent.config["callback_token"] = jwt(time.time() + 1000)
    api.answer = lambda _: Reply()
    agent.start()
    api.wait_for(lambda: api.count("ready"))


def test_two_agents_never_work_on_one_state(make: Make) -> None:
    agent = make().start()
    assert agent.request("GET", "/healthz").status == 200
    second = agent.prepare()
    assert (second.returncode, "another workspace agent" in second.stderr) == (1, True)


def test_an_agent_without_a_handed_socket_listens_where_it_is_told(make: Make, zipapp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = make(listen={"host": "127.0.0.1", "port": port})
    argv = [PYTHON, str(zipapp), "serve", "--config", str(agent.write_config())]
    with agent.log.open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        agent.port = port
        _wait_until(lambda: _connects(port))
        assert agent.request("GET", "/healthz").status == 200
    finally:
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("word", [b"", b"\n"])
def test_an_agent_that_is_to_wait_for_the_word_ends_where_none_comes(make: Make, zipapp: Path, word: bytes) -> None:
    """S21: who started it was killed before the checkout was whole; so nothing is prepared, served or reported."""
    agent = make(listen={"host": "127.0.0.1", "port": 0})
    reader, writer = os.pipe()
    argv = [PYTHON, str(zipapp), "serve", "--config", str(agent.write_config()), "--go-fd", str(reader)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, pass_fds=[reader], text=True)
    assert process.stderr
    os.close(reader)
    os.write(writer, word)
    os.close(writer)
    if word:
        assert any("listens on" in line for line in process.stderr)
        process.terminate()
    else:
        assert "before the workspace was whole" in process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == (0 if word else 1)
    assert agent.state.exists() == bool(word)


@pytest.mark.parametrize(
    "broken", [b"", b"[]", b"{}", b'{"workspace_id": "../x"}', b"\xff", b'{"workspace_id": "w", "attempt": true}']
)
def test_a_broken_configuration_is_one_line_and_exit_code_1(make: Make, zipapp: Path, broken: bytes) -> None:
    agent = make()
    path = agent.write_config()
    path.write_bytes(broken)
    argv = [PYTHON, str(zipapp), "serve", "--config", str(path)]
    failed = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "configuration" in failed.stderr


def test_the_oldest_python_that_is_here_runs_it(make: Make, api: CallbackApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.9 is promised: its grammar is checked everywhere, and it runs the agent where it is installed."""
    for source in Path(agent_package.__file__).parent.glob("*.py"):
        ast.parse(source.read_text(), feature_version=(3, 9))
    found = [*Path.home().glob(".pyenv/versions/3.9.*/bin/python"), *Path("/usr/bin").glob("python3.9")]
    monkeypatch.setattr(agent_process, "PYTHON", str(found[0]) if found else sys.executable)
    agent = make(checkout={"kind": "empty"}, setup=["true"]).start()
    api.wait_for(lambda: api.count("ready"))
    agent.session("s-1", "echo hello")
    assert agent.finished("s-1")["delivered"]
    agent.session("s-2", "sleep 300 & wait")
    assert agent.request("POST", "/sessions/s-2/cancel").body["status"] == "cancelled"
    assert agent.request("GET", "/nothing").status == 404
    assert agent.terminate() == 0


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _sockets_to(port: int) -> bytes:
    """The lines of /proc/net/tcp with a connection to ``port``; state 01 is ESTABLISHED."""
    lines = Path("/proc/net/tcp").read_bytes().splitlines()
    return b"\n".join(line for line in lines if line.split()[2].endswith(b":%04X" % port))
