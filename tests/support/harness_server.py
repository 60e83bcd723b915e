"""A harness server that speaks go-agent-harness's HTTP, with faults: a program of its own, on a real socket.

Shapes and rules as in its ``internal/server`` and ``internal/harness`` (github.com/dennisonbertram/go-agent-harness):
event ids are ``<run id>:<number from 0>``, a resumed stream begins after ``Last-Event-ID``, a slow subscriber misses
events, the runs that it lists come from a store that survives it, and what it streams only from memory.

``HARNESS_ADDR``: where it listens. ``HARNESS_STATE``: a folder for what a test reads (``posts``: a line for each POST
of a run, ``cancels``) and for the store. ``HARNESS_FAULTS``, a comma between each: ``no store`` (501), ``exit at
start``, ``unhealthy`` (503), ``lose first answer`` (accepted, then the connection is cut), ``500 first``, ``400``,
``drop streams`` (each stream is cut after two events), ``needs token`` (``HARNESS_TOKEN``). Each ``first`` once a
folder.

A run's prompt is its script, a line each: ``say TEXT``, ``delta TEXT``, ``flood COUNT SIZE``, ``tool NAME OUTPUT``,
``read PIPE``, ``write PIPE``, ``ask QUESTION`` (until answered), ``approve TOOL``, ``fail TEXT``, ``die``, ``hang``
(until cancelled), ``run COMMAND``.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STATE = Path(os.environ.get("HARNESS_STATE", "."))
FAULTS = set(filter(None, os.environ.get("HARNESS_FAULTS", "").split(",")))
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}


class Run:
    """One run: its events, who follows it, and the thread that carries out its script."""

    def __init__(self, prompt: str, conversation: str) -> None:
        self.id = f"run_{uuid.uuid4()}"
        self.prompt = prompt
        self.conversation = conversation
        self.status = "queued"
        self.output = self.error = ""
        self.events: list[dict[str, Any]] = []
        self.subscribers: set[queue.Queue[dict[str, Any]]] = set()
        self.lock = threading.Lock()
        self.cancelled = threading.Event()
        self.answered = threading.Event()
        self.save()

    def view(self) -> dict[str, Any]:
        fields = {"id": self.id, "prompt": self.prompt, "model": "double", "status": self.status}
        more = {"conversation_id": self.conversation, "output": self.output, "error": self.error}
        return fields | {name: value for name, value in more.items() if value}

    def save(self) -> None:
        if "no store" not in FAULTS:
            partial = STATE / f"{self.id}.new"
            partial.write_text(json.dumps(self.view()))
            partial.replace(STATE / f"{self.id}.json")  # whoever lists meanwhile reads no half of it

    def move(self, status: str) -> None:
        self.status = status
        self.save()

    def emit(self, kind: str, **payload: Any) -> None:
        with self.lock:
            event = {
                "id": f"{self.id}:{len(self.events)}",
                "run_id": self.id,
                "type": kind,
                "timestamp": datetime.now(UTC).isoformat(),
                "payload": payload,
            }
            self.events.append(event)
            for subscriber in self.subscribers:
                with contextlib.suppress(queue.Full):  # as the real one does: it is still in the history
                    subscriber.put_nowait(event)

    def carry_out(self) -> None:
        self.move("running")
        self.emit("run.started")
        said = ""
        for line in self.prompt.splitlines():
            verb, _, text = line.partition(" ")
            if self.cancelled.is_set():
                break
            self.emit("run.step.started")
            if verb == "say":
                said = text
                self.emit("assistant.message", content=text)
            elif verb == "delta":
                said += text
                self.emit("assistant.message.delta", step=1, content=text)
            elif verb == "flood":
                count, size = text.split()
                for number in range(int(count)):
                    self.emit("assistant.message.delta", step=1, content=f"{number}{'.' * int(size)};")
            elif verb == "tool":
                name, _, output = text.partition(" ")
                self.emit("tool.call.started", call_id="c", tool=name, arguments="{}")
                self.emit("tool.call.completed", call_id="c", tool=name, output=output, duration_ms=1)
            elif verb == "read":
                with Path(text).open() as pipe:
                    pipe.readline()
            elif verb == "write":
                with Path(text).open("w") as pipe:
                    pipe.write("here\n")
            elif verb == "run":
                subprocess.run(["/bin/sh", "-c", text], check=True)
            elif verb == "ask":
                self.move("waiting_for_user")
                self.emit("run.waiting_for_user", call_id="c", tool="AskUserQuestion", questions=[{"question": text}])
                self.wait(self.answered)
                self.move("running")
                self.emit("run.resumed", call_id="c", tool="AskUserQuestion")
            elif verb == "approve":
                self.move("waiting_for_approval")
                self.emit("tool.approval_required", call_id="c", tool=text, arguments="{}")
                self.wait(self.answered)
                self.move("running")
                self.emit("tool.approval_granted", call_id="c", tool=text)
            elif verb == "fail":
                self.error = text
                self.move("failed")
                self.emit("run.failed", error=text)
                return
            elif verb == "die":
                print("dying as told", flush=True)
                os._exit(7)
            elif verb == "hang":
                self.cancelled.wait()
        if self.cancelled.is_set():
            self.move("cancelled")
            self.emit("run.cancelled")
            return
        self.output = said
        self.move("completed")
        self.emit("run.completed", output=said)

    def wait(self, event: threading.Event) -> None:
        while not event.wait(0.02) and not self.cancelled.is_set():
            pass
        event.clear()


runs: dict[str, Run] = {}


def once(fault: str) -> bool:
    """Tell whether the fault is to happen, which it does once a folder."""
    if fault not in FAULTS:
        return False
    mark = STATE / f"had {fault}"
    if mark.exists():
        return False
    mark.touch()
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": {"code": code, "message": message}})

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def serve(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path == "/healthz":
            if "unhealthy" in FAULTS:
                self.error(503, "starting", "models are loading")
            else:
                self.answer(200, {"status": "ok"})
            return
        if "needs token" in FAULTS and self.headers["Authorization"] != f"Bearer {os.environ['HARNESS_TOKEN']}":
            self.error(401, "unauthorized", "invalid api key")
            return
        match [method, *self.path.removeprefix("/").split("/")]:
            case ["POST", "v1", "runs"]:
                self.start(body)
            case ["GET", "v1", "conversations", conversation, "runs"]:
                self.listed(conversation)
            case ["GET", "v1", "runs", run_id]:
                self.show(run_id)
            case [_, "v1", "runs", run_id, *_] if run_id not in runs:
                self.error(404, "not_found", f'run "{run_id}" not found')
            case ["GET", "v1", "runs", run_id, "events"]:
                self.stream(runs[run_id])
            case ["POST", "v1", "runs", run_id, "cancel"]:
                with (STATE / "cancels").open("a") as file:
                    file.write(f"{run_id}\n")
                runs[run_id].cancelled.set()
                self.answer(200, {"status": "cancelling"})
            case ["POST", "v1", "runs", run_id, "input" | "approve"]:
                runs[run_id].answered.set()
                self.answer(202, {"status": "accepted"})
            case _:
                self.error(404, "not_found", "no such path")

    def start(self, body: dict[str, Any]) -> None:
        if once("500 first"):
            self.error(500, "internal_error", "try again")
            return
        if "400" in FAULTS or not body.get("prompt"):
            self.error(400, "invalid_request", "prompt is required")
            return
        run = Run(body["prompt"], body.get("conversation_id") or "")
        runs[run.id] = run
        with (STATE / "posts").open("a") as file:
            file.write(f"{run.conversation} {os.getpid()}\n")
        threading.Thread(target=run.carry_out, daemon=True).start()
        if once("lose first answer"):
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.answer(202, {"run_id": run.id, "status": "queued"})

    def listed(self, conversation: str) -> None:
        if "no store" in FAULTS:
            self.error(501, "not_implemented", "run persistence is not configured")
            return
        kept = [json.loads(path.read_text()) for path in sorted(STATE.glob("run_*.json"), key=os.path.getmtime)]
        found = [run for run in reversed(kept) if run.get("conversation_id") == conversation]
        self.answer(200, {"runs": found or None})

    def show(self, run_id: str) -> None:
        if run_id in runs:
            self.answer(200, runs[run_id].view())
        elif (kept := STATE / f"{run_id}.json").exists() and "no store" not in FAULTS:
            self.answer(200, json.loads(kept.read_text()))
        else:
            self.error(404, "not_found", f'run "{run_id}" not found')

    def stream(self, run: Run) -> None:
        subscriber: queue.Queue[dict[str, Any]] = queue.Queue(64)
        with run.lock:
            history = list(run.events)
            run.subscribers.add(subscriber)
        if last := self.headers["Last-Event-ID"]:
            history = history[int(last.rpartition(":")[2]) + 1 :]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            event = history.pop(0) if history else subscriber.get()
            text = f"id: {event['id']}\nretry: 3000\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
            sent += 1
            if event["type"] in TERMINAL:
                self.wfile.write(b"0\r\n\r\n")
                return
            if "drop streams" in FAULTS and sent == 2:
                self.close_connection = True
                self.connection.shutdown(2)
                return

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)


def main() -> int:
    if "exit at start" in FAULTS:
        print("fatal: create provider: no provider configured: set OPENAI_API_KEY", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    host, _, port = os.environ["HARNESS_ADDR"].rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    print(f"listening on {port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
