"""Sessions of the real workspace agent: a process started from the zipapp, reporting over real sockets."""

import concurrent.futures
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.callback_api import CallbackApi, Reply

Make = Callable[..., AgentProcess]


@pytest.fixture
def agent(make: Make) -> AgentProcess:
    return make().start()


def test_a_session_runs_in_the_checkout_and_reports_its_output_then_its_end(
    agent: AgentProcess, api: CallbackApi
) -> None:
    created = agent.session(
        "s-1", "pwd; echo to stderr >&2; echo $GREETING; echo; echo ' the last line '", env={"GREETING": "hi"}
    )
    assert created.status == 201
    view = agent.finished("s-1")
    text = f"{agent.checkout}\nto stderr\nhi\n\n the last line \n"
    assert view == {
        "session_id": "s-1",
        "status": "completed",
        "exit_code": 0,
        "summary": "the last line",
        "error_message": None,
        "output_bytes": len(text),
        "delivered": True,
    }
    assert api.output("s-1") == text
    assert api.find("sessions/s-1/finished") == {
        "status": "completed",
        "exit_code": 0,
        "summary": "the last line",
        "error_message": None,
    }
    of_session = [kind for kind in api.kinds() if kind.startswith("sessions/")]
    assert of_session[-1] == "sessions/s-1/finished"
    assert of_session.count("sessions/s-1/finished") == 1


def test_the_argv_is_executed_as_it_is_and_never_by_a_shell(agent: AgentProcess, api: CallbackApi) -> None:
    body = {"session_id": "s-1", "command": ["/usr/bin/printf", "%s|", "$HOME", "a b", "*", ";ls", "ü"], "env": {}}
    assert agent.request("POST", "/sessions", body).status == 201
    assert agent.finished("s-1")["status"] == "completed"
    assert api.output("s-1") == "$HOME|a b|*|;ls|ü|"


def test_the_environment_is_the_agents_then_the_configured_then_the_sessions(make: Make, api: CallbackApi) -> None:
    agent = make(env={"A": "config", "B": "config"}).start()
    agent.session("s-1", 'echo "$A $B $TASKRUNNER_COMPUTE"; [ -n "$PATH" ] && [ ! -t 0 ] && cat', env={"B": "session"})
    agent.finished("s-1")
    assert api.output("s-1") == f"config session {agent.config['name']}\n"


@pytest.mark.parametrize(
    ("script", "status", "exit_code", "error"),
    [
        ("exit 3", "failed", 3, "exited with 3"),
        ("kill -KILL $$", "failed", 137, "killed by SIGKILL"),
        ("true", "completed", 0, None),
    ],
)
def test_how_a_program_ends_is_how_its_session_ends(
    agent: AgentProcess, api: CallbackApi, *, script: str, status: str, exit_code: int, error: str | None
) -> None:
    agent.session("s-1", script)
    view = agent.finished("s-1")
    assert (view["status"], view["exit_code"], view["error_message"]) == (status, exit_code, error)
    assert api.find("sessions/s-1/finished")["error_message"] == error


def test_a_program_that_is_not_found_fails_the_session_and_says_so(agent: AgentProcess, api: CallbackApi) -> None:
    created = agent.request("POST", "/sessions", {"session_id": "s-1", "command": ["foo-not-there"], "env": {}})
    assert created.status == 201
    view = agent.finished("s-1")
    assert (view["status"], view["exit_code"]) == ("failed", 127)
    assert view["error_message"] == "cannot start 'foo-not-there': No such file or directory"
    assert api.find("sessions/s-1/finished")["exit_code"] == 127


def test_a_program_that_is_not_found_fails_with_the_callers_hint_and_others_without(agent: AgentProcess) -> None:
    (agent.checkout / "notes").write_text("not a program")
    for session, program in (("s-1", "foo-not-there"), ("s-2", "./notes")):
        spec = {"session_id": session, "command": [program], "env": {}, "if_missing": "install foo"}
        assert agent.request("POST", "/sessions", spec).status == 201
    assert agent.finished("s-1")["error_message"].endswith("'foo-not-there': No such file or directory; install foo")
    assert agent.finished("s-2")["error_message"].endswith("Permission denied")


def test_an_end_that_cannot_be_told_in_full_is_told_all_the_same(agent: AgentProcess, api: CallbackApi) -> None:
    agent.request("POST", "/sessions", {"session_id": "s-1", "command": ["x" * 100_000], "env": {}})
    assert agent.finished("s-1")["status"] == "failed"
    assert len(api.find("sessions/s-1/finished")["error_message"]) < 1000


def test_a_file_that_is_no_program_fails_the_session(agent: AgentProcess) -> None:
    (agent.checkout / "notes").write_text("not a program")
    agent.request("POST", "/sessions", {"session_id": "s-1", "command": ["./notes"], "env": {}})
    view = agent.finished("s-1")
    assert (view["status"], view["exit_code"]) == ("failed", 126)
    assert "cannot start './notes': Permission denied" in view["error_message"]


def test_characters_split_across_reads_arrive_whole_and_offsets_count_bytes(
    agent: AgentProcess, api: CallbackApi
) -> None:
    program = (
        "import sys, time\n"
        "data = ('aé漢😀' * 40000).encode()\n"
        "sizes = [1, 2, 3, 5, 7, 65537, 11, 130001]\n"
        "at = n = 0\n"
        "while at < len(data):\n"
        "    size = sizes[n % len(sizes)]; n += 1\n"
        "    sys.stdout.buffer.write(data[at:at + size]); sys.stdout.buffer.flush(); at += size\n"
        "    if n < 12: time.sleep(0.06)\n"
    )
    agent.request("POST", "/sessions", {"session_id": "s-1", "command": [sys.executable, "-c", program], "env": {}})
    view = agent.finished("s-1")
    assert view["status"] == "completed"
    assert api.output("s-1") == "aé漢😀" * 40000
    assert view["output_bytes"] == 400000
    assert api.count("sessions/s-1/output") > 3


def test_output_that_is_no_text_is_replaced_and_every_body_stays_below_the_limit(
    agent: AgentProcess, api: CallbackApi
) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4000 + b'\\0' * 300000 + b'\\xe2\\x82')"
    agent.request("POST", "/sessions", {"session_id": "s-1", "command": [sys.executable, "-c", program], "env": {}})
    view = agent.finished("s-1")
    expected = (bytes(range(256)) * 4000 + b"\0" * 300000 + b"\xe2\x82").decode("utf-8", "replace")
    assert api.output("s-1") == expected
    assert view["output_bytes"] == len(expected.encode())
    assert max(c.size for c in api.received) <= 256 * 1024
    assert "\0" not in view["summary"]


def test_output_leaves_while_the_program_still_runs(agent: AgentProcess, api: CallbackApi) -> None:
    agent.session("s-1", "echo early; until [ -e go ]; do sleep 0.02; done; echo late")
    api.wait_for(lambda: api.count("sessions/s-1/output") > 0, 5)
    assert api.output("s-1") == "early\n"
    assert agent.request("GET", "/sessions/s-1").body["status"] == "running"
    (agent.checkout / "go").touch()
    assert agent.finished("s-1")["status"] == "completed"
    assert api.output("s-1") == "early\nlate\n"


def test_a_background_child_that_keeps_the_output_open_does_not_hide_the_end(
    agent: AgentProcess, api: CallbackApi
) -> None:
    started = time.monotonic()
    agent.session("s-1", "sleep 300 & (trap '' TERM; sleep 300) & echo done")
    view = agent.finished("s-1")
    assert view["status"] == "completed"
    assert view["delivered"]
    assert api.output("s-1") == "done\n"
    assert time.monotonic() - started < 6
    assert agent.living() == []


def test_a_daemon_is_ended_with_its_session_and_another_sessions_is_not(agent: AgentProcess) -> None:
    """A double fork into a session of its own, with an environment of its own, hides from the group and the marks."""
    daemon = (
        "(setsid env -i /bin/sh -c 'echo $$ > {0}; exec sleep 300' >/dev/null 2>&1 &) ; until [ -s {0} ]; do :; done"
    )
    agent.session("s-1", daemon.format("one") + "; until [ -e go ]; do sleep 0.02; done")
    one = _pid_in(agent.checkout / "one")
    agent.session("s-2", "(setsid sleep 300 & echo $! > two) >/dev/null 2>&1")
    agent.finished("s-2")
    assert not _is_alive(_pid_in(agent.checkout / "two"))
    assert _is_alive(one)
    (agent.checkout / "go").touch()
    agent.finished("s-1")
    assert not _is_alive(one)


def test_cancel_terminates_then_kills_everything_of_the_session(agent: AgentProcess, api: CallbackApi) -> None:
    script = (
        "trap 'echo told' TERM\n"
        "(trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > hidden; while :; do sleep 1; done' &)\n"
        "until [ -s hidden ]; do :; done; echo running\n"
        "while :; do sleep 0.1; done"
    )
    agent.session("s-1", script)
    api.wait_for(lambda: api.count("sessions/s-1/output") > 0)
    started = time.monotonic()
    cancelled = agent.request("POST", "/sessions/s-1/cancel", {"grace_seconds": 0.5})
    assert 0.5 <= time.monotonic() - started < 5
    assert (cancelled.status, cancelled.body["status"]) == (200, "cancelled")
    assert agent.living() == []
    assert agent.finished("s-1")["delivered"]
    assert api.output("s-1").startswith("running\n")
    assert api.output("s-1").count("told\n") == 1
    assert api.find("sessions/s-1/finished")["status"] == "cancelled"


def test_a_program_that_ends_when_told_is_not_waited_for(agent: AgentProcess) -> None:
    agent.session("s-1", "sleep 300")
    started = time.monotonic()
    assert agent.request("POST", "/sessions/s-1/cancel", {"grace_seconds": 30}).body["status"] == "cancelled"
    assert time.monotonic() - started < 3


def test_cancel_is_idempotent_and_the_shortest_grace_counts(agent: AgentProcess, api: CallbackApi) -> None:
    agent.session("s-1", "trap 'echo told' TERM; echo up; while :; do sleep 0.05; done")
    api.wait_for(lambda: api.count("sessions/s-1/output") > 0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        patient = pool.submit(agent.request, "POST", "/sessions/s-1/cancel", {"grace_seconds": 60})
        api.wait_for(lambda: "told" in api.output("s-1"))
        hasty = agent.request("POST", "/sessions/s-1/cancel", {"grace_seconds": 0.5})
        answers = [hasty, patient.result(10)]
    assert {(a.status, a.body["status"]) for a in answers} == {(200, "cancelled")}
    assert agent.request("POST", "/sessions/s-1/cancel").body["status"] == "cancelled"
    agent.finished("s-1")
    assert api.output("s-1").count("told\n") == 1
    assert api.count("sessions/s-1/finished") == 1


def test_cancelling_a_session_that_has_ended_changes_nothing(agent: AgentProcess) -> None:
    agent.session("s-1", "exit 0")
    before = agent.finished("s-1")
    assert agent.request("POST", "/sessions/s-1/cancel").body == before


def test_a_repeated_session_id_gives_the_same_session_and_another_spec_is_refused(agent: AgentProcess) -> None:
    """S27: a request that was accepted and is repeated starts nothing."""
    script = "echo once >> ran; sleep 0.2"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = [r.status for r in pool.map(lambda _: agent.session("s-1", script, env={"KEY": "1"}), range(8))]
    assert sorted(statuses) == [200] * 7 + [201]
    agent.finished("s-1")
    again = agent.session("s-1", script, env={"KEY": "renewed"})
    assert (again.status, again.body["status"]) == (200, "completed")
    assert (agent.checkout / "ran").read_text() == "once\n"
    for other in (
        agent.session("s-1", "echo other", env={"KEY": "1"}),
        agent.session("s-1", script),
    ):
        assert other.status == 409
        assert other.headers["Content-Type"] == "application/problem+json"


def test_the_end_waits_for_the_output_however_long_the_api_is_away(agent: AgentProcess, api: CallbackApi) -> None:
    """S12: what could not be delivered is kept in order and delivered when the API is back."""
    api.wait_for(lambda: api.count("ready"))
    api.stop()
    agent.session("s-1", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    deadline = time.monotonic() + 20
    while agent.request("GET", "/sessions/s-1").body["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    view = agent.request("GET", "/sessions/s-1?wait=0.2").body
    assert (view["status"], view["delivered"]) == ("completed", False)
    api.start()
    assert agent.finished("s-1")["delivered"]
    assert api.output("s-1") == "".join(f"line {i}\n" for i in range(20000))
    assert api.kinds()[-1] == "sessions/s-1/finished"


def test_waiting_for_a_session_is_answered_the_moment_its_end_is_delivered(
    agent: AgentProcess, api: CallbackApi
) -> None:
    hold = [True]
    api.answer = lambda c: Reply(503) if hold[0] and c.kind.endswith("finished") else Reply()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        agent.session("s-1", "true")
        waiting = pool.submit(agent.finished, "s-1", 60)
        api.wait_for(lambda: any(c.kind.endswith("finished") for c in api.received))
        assert not waiting.done()
        hold[0] = False
        api.wait_for(lambda: api.count("sessions/s-1/finished"))
        assert waiting.result(1)["delivered"]


def test_callbacks_are_tried_again_after_5xx_and_lost_answers_but_not_after_4xx(
    agent: AgentProcess, api: CallbackApi
) -> None:
    seen: dict[str, int] = {}

    def answer(callback: Any) -> Reply:
        seen[callback.kind] = seen.get(callback.kind, 0) + 1
        if callback.kind == "sessions/s-1/output":
            return Reply(404, {"detail": "unknown session"})
        if callback.kind == "sessions/s-1/finished":
            return [Reply(503), Reply(0), Reply(429, headers={"Retry-After": "1"}), Reply()][seen[callback.kind] - 1]
        return Reply()

    api.answer = answer
    agent.session("s-1", "echo refused")
    assert agent.finished("s-1")["delivered"]
    assert seen["sessions/s-1/output"] == 1
    assert seen["sessions/s-1/finished"] == 4


def test_an_answer_without_success_is_final(agent: AgentProcess, api: CallbackApi) -> None:
    api.answer = lambda c: Reply(200, {"success": False, "reason": "workspace_not_running"})
    agent.session("s-1", "true")
    assert agent.finished("s-1")["delivered"]
    assert api.count("sessions/s-1/finished") == 1
    assert "workspace_not_running" in agent.log.read_text()


def test_an_api_that_misses_output_gets_it_again(agent: AgentProcess, api: CallbackApi) -> None:
    stored = bytearray()
    forget = [True]

    def answer(callback: Any) -> Reply:
        if callback.kind != "sessions/s-1/output":
            return Reply()
        offset, data = callback.body["offset"], "".join(callback.body["chunks"]).encode()
        if offset > 0 and forget[0]:
            forget[0] = False
            stored.clear()  # a database that lost its last transactions
        if offset > len(stored):
            return Reply(409, {"expected_offset": len(stored)})
        stored[offset:] = data
        return Reply(202)

    api.answer = answer
    agent.session("s-1", "echo one; sleep 0.3; echo two")
    agent.finished("s-1")
    assert bytes(stored) == b"one\ntwo\n"


@pytest.mark.parametrize("delivered", [True, False])
def test_a_finished_session_is_known_after_a_restart_and_delivered_once(
    agent: AgentProcess, api: CallbackApi, delivered: bool
) -> None:
    agent.session("s-1", "echo hello")
    api.wait_for(lambda: api.count("ready"))
    if delivered:
        agent.finished("s-1")
    else:
        api.stop()
        agent.session("s-2", "echo offline")
        deadline = time.monotonic() + 10
        while agent.request("GET", "/sessions/s-2").body["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    agent.kill()
    if not delivered:
        api.start()
    agent.start()
    assert agent.session("s-1", "echo hello").status == 200
    session_id = "s-1" if delivered else "s-2"
    view = agent.finished(session_id)
    assert (view["status"], view["delivered"]) == ("completed", True)
    assert api.count(f"sessions/{session_id}/finished") == 1
    assert api.output(session_id) == ("hello\n" if delivered else "offline\n")
    assert api.count("ready") == 1


def test_a_session_that_an_agent_left_running_is_interrupted_and_ended(agent: AgentProcess, api: CallbackApi) -> None:
    """S28: killed with kill -9 in the middle of a session; nothing of it is left and its end is reported."""
    agent.session("s-1", "(setsid sleep 300 >/dev/null 2>&1 &); echo before; sleep 300")
    api.wait_for(lambda: api.count("sessions/s-1/output"))
    agent.kill()
    assert agent.living()
    agent.start()
    view = agent.finished("s-1")
    assert view["status"] == "interrupted"
    assert "restarted" in view["error_message"]
    assert agent.living() == []
    assert agent.session("s-1", "(setsid sleep 300 >/dev/null 2>&1 &); echo before; sleep 300").status == 200
    assert api.count("sessions/s-1/finished") == 1
    assert api.find("sessions/s-1/finished")["status"] == "interrupted"
    assert api.output("s-1", repeats=True) == "before\n"


def test_damaged_state_stops_nothing_and_runs_no_session_twice(agent: AgentProcess, api: CallbackApi) -> None:
    agent.session("s-1", "echo ran >> ran")
    agent.session("s-2", "echo fine")
    agent.finished("s-1")
    agent.finished("s-2")
    agent.kill()
    (agent.state / "sessions" / "s-1" / "session.json").write_bytes(b"\0\0\0{")
    (agent.state / "sessions" / "s-1" / "acknowledged").write_bytes(b"\xff")
    (agent.state / "sessions" / "s-1" / "output-0000000000000000000").write_bytes(b"half a char \xe2\x82")
    (agent.state / "spool" / "verdict" / "0000000001.json").write_bytes(b"{")
    (agent.state / "boot.json").write_bytes(b"[1")
    (agent.state / "callback-token").write_bytes(b"\n\xff")
    (agent.state / "sessions" / "NOT-AN-ID").mkdir()
    agent.start()
    assert agent.session("s-1", "echo ran >> ran").body["status"] in {"starting", "interrupted"}
    assert agent.finished("s-1")["status"] == "interrupted"
    assert agent.session("s-2", "echo fine").body["status"] == "completed"
    assert (agent.checkout / "ran").read_text() == "ran\n"
    assert agent.session("s-3", "echo new").status == 201
    assert agent.finished("s-3")["status"] == "completed"


def test_a_session_that_was_only_asked_for_when_the_agent_was_killed_may_be_asked_for_again(
    agent: AgentProcess,
) -> None:
    agent.session("s-1", "true")
    agent.finished("s-1")
    agent.kill()
    (agent.state / "sessions" / "s-9").mkdir()
    agent.start()
    assert agent.session("s-9", "true").status == 201
    assert agent.finished("s-9")["status"] == "completed"


def test_sigterm_interrupts_the_sessions_and_delivers_what_can_be(agent: AgentProcess, api: CallbackApi) -> None:
    agent.session("s-1", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    api.wait_for(lambda: api.count("sessions/s-1/output"))
    assert agent.terminate() == 0
    assert api.find("sessions/s-1/finished")["status"] == "interrupted"
    assert agent.living() == []


def test_sigterm_does_not_wait_for_ever_for_an_api_that_is_away(agent: AgentProcess, api: CallbackApi) -> None:
    api.wait_for(lambda: api.count("ready"))
    api.stop()
    agent.session("s-1", "echo up; sleep 300")
    started = time.monotonic()
    assert agent.terminate() == 0
    assert time.monotonic() - started < 9
    api.start()
    agent.start()
    assert agent.finished("s-1")["status"] == "interrupted"
    assert api.output("s-1") == "up\n"


def test_a_sessions_secrets_are_on_no_disk_and_in_no_log(agent: AgentProcess, tmp_path: Path) -> None:
    """S37."""
    agent.session("s-1", 'test -n "$API_KEY"', env={"API_KEY": "s3cr3t-value"})
    assert agent.finished("s-1")["status"] == "completed"
    agent.kill()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"s3cr3t-value" not in path.read_bytes(), path


def test_orphans_of_ended_sessions_leave_no_zombies(agent: AgentProcess) -> None:
    agent.session("s-1", "for i in 1 2 3; do (setsid sleep 0.05 &); done; sleep 0.3")
    agent.finished("s-1")
    assert agent.process is not None
    pids = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    assert pids == []


def test_a_full_backlog_stops_the_program_not_the_agent(agent: AgentProcess, api: CallbackApi) -> None:
    """With the API away a program that writes without end is held up; cancel still works."""
    api.wait_for(lambda: api.count("ready"))
    api.stop()
    agent.session("s-1", "exec head -c 400000000 /dev/zero")
    deadline = time.monotonic() + 60
    size, last = 0, -1
    while size != last or size == 0:
        assert time.monotonic() < deadline
        # Answered after a second, or at once where the program has come to its end.
        answer = agent.request("GET", "/sessions/s-1?wait=1").body
        assert answer["status"] == "running"
        size, last = answer["output_bytes"], size
    assert 256 * 1024 * 1024 <= size < 257 * 1024 * 1024
    assert agent.request("POST", "/sessions/s-1/cancel").body["status"] == "cancelled"


def _pid_in(path: Path) -> int:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
