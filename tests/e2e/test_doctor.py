"""``taskrunner doctor`` as its users run it."""

import json
import os
import re
import signal
import socket
from contextlib import closing
from pathlib import Path
from time import perf_counter

import psutil
import pytest

from tests.support.cli import Cli, Finished, is_one_line
from tests.support.docker import IMAGE, Daemon


def checks_of(finished: Finished, *, ok: bool) -> dict[str, dict[str, str]]:
    report = json.loads(finished.out)
    assert report["ok"] is ok, finished
    assert finished.code == (0 if ok else 1), finished
    assert finished.err == ""
    for check in report["checks"]:
        assert check["status"] in {"ok", "warning", "broken", "not needed"}
        assert {"name", "status", "found"} <= check.keys() <= {"name", "status", "found", "problem", "mend"}
        assert check["found"]
        assert check["status"] not in {"warning", "broken"} or (check["problem"] and check["mend"])
    return {check["name"]: check for check in report["checks"]}


def test_a_machine_that_never_ran_it_is_checked_and_left_as_it_was(cli: Cli) -> None:
    before = sorted(cli.home.parent.rglob("*"))
    checks = checks_of(cli.run("doctor", "--json"), ok=True)
    assert checks["home"]["status"] == "ok"
    assert checks["temporal-server"]["status"] == checks["api"]["status"] == "not needed"
    lines = cli.run("doctor").out.splitlines()
    assert len(lines) == len(checks) + 3  # a head, an empty line, how it is altogether
    assert lines[-1].startswith("Everything that is needed works.")
    assert sorted(cli.home.parent.rglob("*")) == before
    assert cli.processes() == {}


def test_a_running_stack_is_found_whole(cli: Cli) -> None:
    with cli.dev() as stack:
        checks = checks_of(cli.run("doctor", "--json"), ok=True)
        needed = ("home", "keys", "temporal-cli", "temporal-server", "postgresql", "stack", "api")
        for name in (*needed, "port-api", "port-temporal", "port-ui"):
            assert checks[name]["status"] == "ok", checks[name]
        assert f"process {stack.process.pid}" in checks["stack"]["found"]
        assert "of our own stack" in checks["port-ui"]["found"]
        assert "schema up to date" in checks["postgresql"]["found"]
        [temporal] = [p for p in psutil.Process(stack.process.pid).children() if "temporal" in p.name()]
        temporal.send_signal(signal.SIGSTOP)
        try:
            checks = checks_of(cli.run("doctor", "--json"), ok=False)
            for name in ("temporal-server", "api"):
                assert checks[name]["status"] == "broken", checks[name]
        finally:
            temporal.send_signal(signal.SIGCONT)


def test_what_is_broken_is_named_and_is_exit_code_1(cli: Cli) -> None:
    cli.home.write_text("a file")
    (cli.cwd / "bin").mkdir()
    finished = cli.run("doctor", env={"PATH": str(cli.cwd / "bin")})
    assert finished.code == 1, finished
    assert finished.err == ""
    assert finished.out.splitlines()[-1].startswith("Broken: git, home")
    assert f"mend it: mv {cli.home} {cli.home}.old" in finished.out
    assert "temporal.db" not in finished.out
    for name in ("keys", "postgresql", "stack"):  # what lies in it is not judged
        assert re.search(rf"{name} +not known until the home is mended", finished.out), finished
    wrong = cli.run("doctor", "--wat")
    assert wrong.code == 2
    assert is_one_line(wrong)


def test_nothing_that_hangs_holds_it_up_and_no_secret_is_shown(cli: Cli) -> None:
    """S37: servers that take connections and never answer, programs that never end: within 5 s, nothing left."""
    tools = cli.cwd / "bin"
    tools.mkdir()
    for name in ("git", "temporal", "docker", "claude", "codex", "gemini", "opencode"):
        (tools / name).write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
        (tools / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        port = mute.getsockname()[1]
        elsewhere = {
            "TASKRUNNER_API_URL": f"http://127.0.0.1:{port}",
            "TASKRUNNER_API_TOKEN": "tr_hunter3",
            "TASKRUNNER_DATABASE_URL": f"postgresql://me:hunter4@127.0.0.1:{port}/x",
            "TEMPORAL_ADDRESS": f"127.0.0.1:{port}",
            "TEMPORAL_API_KEY": "hunter5",
        }
        cli.env["DOCKER_HOST"] = f"tcp://127.0.0.1:{port}"
        for more in ({}, elsewhere):
            began = perf_counter()
            finished = cli.run("doctor", "--docker", "--json", env={"PATH": str(tools), **more})
            took = perf_counter() - began
            cli.run("doctor", "--help")
            busy = perf_counter() - began - took  # how long this machine takes just now to start and end a program
            assert took < 5 + 4 * busy, finished
            checks = checks_of(finished, ok=False)
            assert checks["git"]["status"] == checks["docker"]["status"] == "broken"
            assert checks["agent-codex"]["status"] in {"ok", "not needed"}
            assert "hunter" not in finished.out
    for name in ("api", "postgresql", "temporal-server"):
        assert checks[name]["status"] == "broken", checks[name]
        # A machine so busy that nothing is left of the 5 s does not hear what the check itself would say.
        assert str(port) in checks[name]["found"] or "did not end within" in checks[name]["problem"]
    assert cli.processes() == {}


def test_ctrl_c_leaves_nothing(cli: Cli) -> None:
    note = cli.cwd / "asked"
    os.mkfifo(note)
    git = cli.cwd / "git"
    git.write_text(f"#!/bin/sh\necho $$ > {note}\nexec /bin/sleep 1000\n")
    git.chmod(0o755)
    running = cli.start("doctor", env={"PATH": str(cli.cwd)})
    pid = int(Path(note).read_text())
    running.signal(signal.SIGINT)
    assert running.end(10).code == 130
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_container_is_left_however_it_ends(
    cli: Cli, daemon: Daemon, leaves_no_container: None, number: signal.Signals
) -> None:
    """At Ctrl-C it is gone when we are; killed, it ends by itself."""
    (cli.cwd / "own.yaml").write_text(f"{{name: own, backend: container, container: {{image: '{IMAGE}'}}}}")
    with (
        socket.create_server((daemon.gateway, 0), backlog=10) as mute,
        closing(daemon.client().events(filters={"event": ["start", "destroy"]}, decode=True)) as events,
    ):
        environ = {
            "DOCKER_HOST": daemon.host,
            "TASKRUNNER_TEMPLATES": str(cli.cwd),
            "TASKRUNNER_DATABASE_URL": "postgresql://127.0.0.1:1/x",
            "TASKRUNNER_PUBLIC_URL": f"http://{daemon.gateway}:{mute.getsockname()[1]}",
        }
        running = cli.start("doctor", env=environ)
        started = next(events)
        assert started["Actor"]["Attributes"]["name"].startswith("tr-check-")
        running.signal(number)
        assert running.end(20).code == (130 if number is signal.SIGINT else -signal.SIGKILL)
        if number is signal.SIGINT:
            assert daemon.client().containers(all=True, filters={"name": "tr-check-"}) == []
        assert next(events)["Action"] == "destroy"


def test_the_look_from_inside_a_container_is_told(cli: Cli, daemon: Daemon, leaves_no_container: None) -> None:
    (cli.cwd / "own.yaml").write_text(f"{{name: own, backend: container, container: {{image: '{IMAGE}'}}}}")
    cli.env |= {"DOCKER_HOST": daemon.host, "TASKRUNNER_TEMPLATES": str(cli.cwd)}
    checks = checks_of(cli.run("doctor", "--docker", "--json"), ok=True)
    assert checks["containers"]["found"].startswith(f"a container of {IMAGE} reached http://host.docker.internal:")
    with cli.dev():  # whose own listener is called, once the first container has made it open one
        assert cli.run("run", "--template", "own", "true").code == 0
        [port] = json.loads((cli.home / "doors.json").read_text()).values()
        found = checks_of(cli.run("doctor", "--docker", "--json"), ok=True)["containers"]["found"]
        assert found.endswith(f"http://host.docker.internal:{port}")
    cli.env["DOCKER_HOST"] = f"unix://{cli.cwd}/none"
    found = checks_of(cli.run("doctor", "--docker", "--json"), ok=False)["containers"]
    assert found["status"] == "not needed"
    assert found["found"].startswith("not looked at: Docker does not answer at unix://")
