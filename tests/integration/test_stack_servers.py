# ruff: noqa: ASYNC220 (processes that are to be foreign are started as a foreigner would)
"""The servers of the embedded stack: that they serve, end with us, and are ended where something was left behind."""

import asyncio
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from activities.proc import start_time
from activities.processes import identify
from messages.search_attributes import SEARCH_ATTRIBUTES, TASK_STEP
from messages.statuses import TaskStep
from tests.support.temporal import free_port, stack_temporal
from workers import postgres_programs, temporal_server
from workers.children import STACK_MARKER, Child, end_leftover
from workers.client import connect
from workers.errors import StackError
from workers.postgres import start_postgres
from workers.temporal_binary import obtain_temporal
from workers.temporal_server import (
    AddressInUse,
    PortInUse,
    choose_port,
    end_leftovers,
    start_temporal,
    start_temporal_on_chosen_ports,
    take_port,
)

ROOT = Path(__file__).parents[2]


def make_home(path: Path) -> Path:
    (path / "logs").mkdir(parents=True)
    (path / "stack.lock").touch()
    return path


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="tr-home-") as folder:
        yield make_home(Path(folder) / "home")


def says_ready(line: str) -> bool:
    return line == "ready"


async def child(home: Path, script: str, *, timeout: float = 20, is_ready: Callable[[str], bool] = says_ready) -> Child:
    return await Child.start(
        "the script",
        ["/bin/sh", "-c", script],
        cwd=home,
        env={"PATH": os.environ["PATH"], STACK_MARKER: str(home)},
        log=home / "logs" / "script.log",
        is_ready=is_ready,
        timeout=timeout,
        stop_signal=signal.SIGTERM,
    )


async def test_a_server_whose_log_cannot_be_written_is_not_started_and_not_waited_for(home: Path) -> None:
    (home / "logs" / "script.log").mkdir()
    with pytest.raises(StackError, match=rf"script cannot be started: {home}/logs/script.log is a folder .* run: mv "):
        await asyncio.wait_for(child(home, f"touch {home}/started; echo ready; exec sleep 1000"), 10)
    assert not (home / "started").exists()
    shutil.rmtree(home / "logs")
    (home / "logs").touch()
    with pytest.raises(StackError, match=rf"{home}/logs is not a folder; run: mv {home}/logs {home}/logs.old"):
        await asyncio.wait_for(child(home, "echo ready; exec sleep 1000"), 10)


async def test_a_server_that_nobody_can_follow_is_not_waited_for(home: Path) -> None:
    def fails(_: str) -> bool:
        raise ValueError("no such line")

    with pytest.raises(StackError, match="the script cannot be followed: ValueError: no such line"):
        await asyncio.wait_for(child(home, "echo ready; exec sleep 1000", is_ready=fails), 10)


async def test_postgres_keeps_its_data_and_its_doors_closed(home: Path) -> None:
    server = await start_postgres(home)
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        await connection.execute("CREATE TABLE kept (x int)")
        listening = await (await connection.execute("SHOW listen_addresses")).fetchone()
    assert listening == ("",)
    assert (home / "postgres").stat().st_mode & 0o077 == 0
    await server.child.stop()
    server = await start_postgres(home)
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        await connection.execute("SELECT x FROM kept")
    await server.child.stop()


async def test_postgres_starts_in_a_home_with_a_long_and_odd_path(home: Path) -> None:
    long = make_home(home / ("long %2F, 'x' " * 12).strip())
    server = await start_postgres(long)
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        await connection.execute("SELECT 1")
    await server.child.stop()


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    with TemporaryDirectory(prefix="tr-shared-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_postgres_opens_no_folder_to_others_on_its_way(
    home: Path, open_to_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root it runs as another user: neither its data nor its programs may be the reason to let everybody through."""
    programs, closed = postgres_programs._installed(), home.parent / "closed"
    package, copies = programs.parents[1], open_to_all / "lib/postgres"
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    programs = closed / programs.relative_to(package.parent)
    monkeypatch.setattr(postgres_programs, "SHARED", copies)
    monkeypatch.setattr(postgres_programs, "_installed", lambda: programs)
    inner = make_home(closed / "home")
    # One of them inside the programs' own folder, as made under a umask of 077.
    folders = (home.parent, closed, inner, programs.parent / "share")
    for folder in folders:
        folder.chmod(0o700)

    for time in ("first", "second"):
        server = await start_postgres(inner)
        try:
            async with await psycopg.AsyncConnection.connect(server.url) as connection:
                # The time zones are read from the programs' folder, the table from the data folder.
                await connection.execute("SET timezone TO 'Europe/Paris'")
                await connection.execute(f"CREATE TABLE {time} (x int)")
        finally:
            await server.child.stop()
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * len(folders)
        if os.geteuid() == 0:
            [copy] = copies.iterdir()
            assert copy in Path(server.child.argv[0]).parents
        else:
            assert not copies.exists()


def test_half_a_copy_of_the_programs_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S21"""
    programs, shared = tmp_path / "wheel/postgres/bin", tmp_path / "shared"
    for part in ("bin", "lib", "share"):
        (programs.parent / part).mkdir(parents=True)
        (programs.parent / part / "file").write_text(part)
    (programs / "postgres").write_text("#!/bin/sh\n")
    (programs / "postgres").chmod(0o755)

    def stop(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            postgres_programs._copy(programs, shared, None)
    (programs / "file").write_text("newer")
    copy = postgres_programs._copy(programs, shared, None)
    assert (copy / "file").read_text() == "newer"
    assert len(list(shared.iterdir())) == 1
    (programs / "file").write_text("newest")
    assert postgres_programs._copy(programs, shared, None) == copy
    assert (copy / "file").read_text() == "newer"
    # Nor one that does not run any more, and none is made of programs that do not.
    (copy / "postgres").chmod(0o644)
    assert postgres_programs._copy(programs, shared, None) == copy
    assert os.access(copy / "postgres", os.X_OK)
    for path in (programs, copy):
        (path / "postgres").chmod(0o644)
    with pytest.raises(StackError, match=f"{programs} .*install taskrunner again"):
        postgres_programs._copy(programs, shared, None)
    assert len(list(shared.iterdir())) == 1


async def test_a_postgres_that_was_left_behind_is_ended_first(home: Path) -> None:
    """A kill -9 of the stack whose parent-death signal was lost: the data folder is in use by nobody's server."""
    server = await start_postgres(home)
    await server.child.stop()
    user = {"user": "pgserver", "group": "pgserver", "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(server.child.argv, cwd=home / "postgres", stderr=subprocess.PIPE, **user) as left:
        assert left.stderr
        while b"ready to accept" not in left.stderr.readline():
            pass
        server = await start_postgres(home)
        assert left.wait(10) is not None
    await server.child.stop()


async def test_temporal_serves_with_our_search_attributes_on_a_fast_database(home: Path) -> None:
    async with stack_temporal(home) as server:
        client = await connect(server.address)
        answer = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
        kinds = dict(answer.custom_attributes)
        assert {key.name for key in SEARCH_ATTRIBUTES} <= kinds.keys()
        assert kinds["TaskStatus"] == IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        with sqlite3.connect(home / "temporal.db") as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.close()
        assert (home / "temporal.db").stat().st_mode & 0o077 == 0
    # Its state is kept, and attributes that are there already are no error.
    async with stack_temporal(home):
        pass


@workflow.defn(sandboxed=False)
class Nothing:
    @workflow.run
    async def run(self) -> None:
        """Do nothing."""


async def test_none_of_many_workflows_that_start_at_once_waits_for_its_turn(home: Path) -> None:
    """The server keeps what no poller is free for in one place, and hands it out as fast as workers take it."""
    async with stack_temporal(home) as server:
        client = await connect(server.address)
        async with Worker(client, task_queue="many", workflows=[Nothing]):
            for burst in range(3):
                names = [f"{burst}-{number}" for number in range(60)]
                handles = await asyncio.gather(
                    *(client.start_workflow(Nothing.run, id=name, task_queue="many") for name in names)
                )
                await asyncio.gather(*(handle.result() for handle in handles))
                waits = sorted([await wait_for_a_worker(handle) for handle in handles])
                assert waits[-1] < 1.5, waits


async def wait_for_a_worker(handle: WorkflowHandle[Nothing, None]) -> float:
    history = await handle.fetch_history()
    scheduled, started = (event.event_time.ToNanoseconds() for event in history.events[1:3])
    return (started - scheduled) / 1e9


@workflow.defn(sandboxed=False)
class Step:
    @workflow.run
    async def run(self) -> None:
        workflow.upsert_search_attributes([TASK_STEP.value_set(TaskStep.RELEASING.value)])
        await workflow.wait_condition(lambda: False)


async def test_lists_of_workflows_are_less_than_a_second_behind_however_many_there_are(home: Path) -> None:
    """The server writes them three times a second only, each time all that has changed."""
    async with stack_temporal(home) as server:
        client = await connect(server.address)
        async with Worker(client, task_queue="steps", workflows=[Step]):
            ours = [f"step-{number}" for number in range(150)]  # two changes each: more than one of its usual pages
            await asyncio.gather(*(client.start_workflow(Step.run, id=name, task_queue="steps") for name in ours))
            handles = [client.get_workflow_handle(name) for name in ours]
            await asyncio.gather(*(until_it_has_a_step(handle) for handle in handles))
            async with asyncio.timeout(1):
                while (await client.count_workflows("TaskStep = 'releasing'")).count < len(ours):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # nothing announces what is in a list


async def until_it_has_a_step(handle: WorkflowHandle[Step, None]) -> None:
    async for event in handle.fetch_history_events(wait_new_event=True):
        if event.HasField("upsert_workflow_search_attributes_event_attributes"):
            return


async def test_stacks_that_start_at_once_and_choose_the_same_ports_all_come_up(home: Path) -> None:
    """Nobody holds a port for Temporal between its choice and its use: who loses it chooses again."""
    program = await obtain_temporal(None, print)
    usual, usual_ui = free_port(), free_port()
    all_chose = asyncio.Barrier(3)

    async def start(number: int) -> tuple[int, int]:
        own = make_home(home.parent / str(number))
        ports = [(usual, usual_ui)]

        def choose() -> tuple[int, int]:
            if ports:
                return ports.pop()
            ask = {"purpose": "x", "option": "--x"}
            return choose_port(None, preferred=usual, **ask), choose_port(None, preferred=usual_ui, **ask)

        await all_chose.wait()
        server = await start_temporal_on_chosen_ports(program, own, choose)
        try:
            client = await connect(server.address)
            assert await client.service_client.check_health()
            await all_chose.wait()  # all are up at once
            return server.port, server.ui_port
        finally:
            await server.child.stop()

    chosen = await asyncio.gather(*(start(number) for number in range(3)))
    assert len({port for ports in chosen for port in ports}) == 6


async def test_a_port_that_was_asked_for_is_not_replaced(home: Path, taken: int) -> None:
    program = await obtain_temporal(None, print)
    with pytest.raises(AddressInUse, match=f"{taken}: bind: address already in use"):
        await start_temporal(program, home, port=taken, ui_port=free_port())
    asked = iter([free_port(), taken])

    def choose() -> tuple[int, int]:
        return choose_port(next(asked), preferred=0, purpose="x", option="--x"), taken

    with pytest.raises(PortInUse, match=f"port {taken}"):
        await start_temporal_on_chosen_ports(program, home, choose)


async def test_a_program_that_hangs_is_no_temporal_cli_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal_server, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.delenv("TASKRUNNER_TEMPORAL_BIN", raising=False)
    program, pipe = home / "temporal", home / "pipe"
    os.mkfifo(pipe)
    program.write_text(f"#!/bin/sh\nexec 3>{pipe}\nsleep 1000\n")
    program.chmod(0o755)
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match=f"{program} is not a Temporal CLI; move it away: mv {program}"):
            await start_temporal(program, home, port=free_port(), ui_port=free_port())
    assert os.read(held, 1) == b""  # its end: who had it open is gone
    os.close(held)


async def test_a_temporal_cli_that_does_not_start_is_named(home: Path) -> None:
    program = home / "temporal"
    program.write_text("#!/bin/sh\ntest $1 = --version && echo temporal version 0.5.0 && exit\necho boom; exit 7\n")
    program.chmod(0o755)
    with pytest.raises(StackError, match=f"boom; see {home}/logs/temporal.log.*TASKRUNNER_TEMPORAL_BIN.*{program}"):
        await start_temporal(program, home, port=free_port(), ui_port=free_port())


async def test_what_an_earlier_stack_left_behind_is_ended_and_nothing_else(home: Path) -> None:
    env = {"PATH": os.environ["PATH"]}
    ours = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
        env={**env, STACK_MARKER: str(home)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    others = subprocess.Popen(["sleep", "1000"], env={**env, STACK_MARKER: f"{home}-2"})
    try:
        assert ours.stdout
        assert ours.stdout.readline() == b"up\n"
        process = identify(ours.pid)
        assert process
        await end_leftover(process, signal.SIGTERM, grace_seconds=0.2)  # deaf to the polite signal
        assert ours.wait(5) == -signal.SIGKILL
        await end_leftovers(home)
        assert others.poll() is None
        with subprocess.Popen(["sleep", "1000"], env={**env, STACK_MARKER: str(home)}) as left:
            assert await end_leftovers(home) == [left.pid]
            assert left.wait(5) == -signal.SIGTERM
    finally:
        ours.stdout.close()
        for process in (ours, others):
            process.kill()
            process.wait()


async def test_a_child_that_ends_before_it_serves_is_told_with_its_last_words(home: Path) -> None:
    with pytest.raises(StackError, match=r"the script did not start: FATAL: no room"):
        await child(home, "echo starting; echo 'FATAL: no room'; echo bye; exit 1")
    with pytest.raises(StackError, match=r"did not come up within 0\.2 s: still thinking"):
        await child(home, "echo still thinking; exec sleep 1000", timeout=0.2)
    assert "FATAL: no room" in (home / "logs" / "script.log").read_text()


async def test_a_child_that_does_not_stop_is_killed(home: Path) -> None:
    server = await child(home, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    await server.stop(grace=0.2)
    assert server.process.returncode == -signal.SIGKILL


async def test_a_child_with_a_lot_to_say_is_never_blocked(home: Path) -> None:
    """Lines of any length, and more of them than a pipe holds."""
    server = await child(home, "head -c 300000 /dev/zero | tr '\\0' x; echo; echo ready; yes | head -100000; echo end")
    await asyncio.wait_for(server.wait(), 20)
    assert server.process.returncode == 0
    assert server.last_words == "end"


def test_children_end_with_a_parent_that_is_killed(home: Path) -> None:
    """S21: kill -9 runs no code of ours, so the kernel has to."""
    script = f"""
import asyncio, os, signal, sys
from pathlib import Path
from workers.children import Child
async def main():
    child = await Child.start(
        "x", ["/bin/sh", "-c", "echo ready; exec sleep 1000"], cwd=Path("/"), env={{"PATH": "/bin:/usr/bin"}},
        log=Path({str(home)!r}) / "log", is_ready=lambda line: line == "ready", timeout=20, stop_signal=signal.SIGTERM
    )
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        assert start_time(pid) is not None
        parent.kill()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


@pytest.fixture
async def taken() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_ports_are_taken_as_they_were_asked_for(taken: int) -> None:
    ask = {"purpose": "the thing", "option": "--thing"}
    with pytest.raises(PortInUse, match=rf"port {taken} \(the thing\) is in use.*--thing"):
        take_port(taken, preferred=0, **ask)
    free = free_port()
    assert choose_port(None, preferred=free, **ask) == free
    assert choose_port(0, preferred=free, **ask) == free
    assert choose_port(None, preferred=taken, **ask) not in {0, taken}
    assert choose_port(free, preferred=taken, **ask) == free


def test_a_port_that_was_taken_is_taken_for_everybody() -> None:
    """Two stacks that start at once never get one port."""
    with take_port(None, preferred=0, purpose="x", option="--x") as first:
        port = first.getsockname()[1]
        with take_port(None, preferred=port, purpose="x", option="--x") as second:
            assert second.getsockname()[1] != port
        with pytest.raises(PortInUse):
            take_port(port, preferred=0, purpose="x", option="--x")
