"""Temporal: the program of the embedded server, and a server that there is."""

import asyncio
import shutil
from pathlib import Path

import httpx
from temporalio.service import RPCError

from api.temporal_setup import look_at_setup, setup_problem
from cli.doctor.check import PATIENCE_SECONDS, Check, broken, from_error, ok, warning
from cli.doctor.programs import Programs, version_in
from messages.search_attributes import SEARCH_ATTRIBUTES
from messages.urls import without_user_info
from workers.client import client_config, connect
from workers.errors import StackError
from workers.temporal_binary import DOWNLOADS, GO_PACKAGE, INSTALL_HINT, cache_folder, find_temporal

_CLI = "temporal-cli"
_SERVER = "temporal-server"


def check_cli(programs: Programs, named: Path | None, *, downloads: str = DOWNLOADS) -> Check:
    """Check the program of the embedded server; where there is none, whether the first start can obtain it."""
    try:
        path = find_temporal(named)
    except StackError as e:
        return from_error(_CLI, "named by TASKRUNNER_TEMPORAL_BIN", e)
    if path is None:
        return _check_ways(programs, downloads)
    other = "unset TASKRUNNER_TEMPORAL_BIN" if named else f"mv {path} {path}.old"
    try:
        said = programs.ask(str(path), "--version")
    except (OSError, TimeoutError) as e:
        return broken(_CLI, str(path), f"it cannot be run: {getattr(e, 'strerror', None) or e}", other)
    if said.code != 0 or "temporal" not in said.text.lower():
        return broken(_CLI, str(path), "this is not the Temporal CLI", other)
    return ok(_CLI, f"{version_in(said.text) or 'version not known'} ({path})")


def _check_ways(programs: Programs, downloads: str) -> Check:
    try:
        httpx.head(downloads, timeout=programs.patience_seconds / 2)
    except httpx.HTTPError:
        pass
    else:
        return warning(_CLI, "not there yet", "the first start downloads it (once, about 50 MB)", "taskrunner dev")
    go = shutil.which("go")
    if go is None:
        return broken(_CLI, "not there", f"{downloads} cannot be reached, and there is no Go to build it", INSTALL_HINT)
    try:
        version = version_in(programs.ask(go, "version", share=0.4).text)
    except (OSError, TimeoutError):
        version = None
    return warning(
        _CLI,
        f"not there yet; Go {version or 'of unknown version'} ({go})",
        f"{downloads} cannot be reached: the first start builds it with Go (once, about 5 minutes)",
        f"GOBIN={cache_folder()} go install {GO_PACKAGE}",
    )


def check_server(address: str | None = None, *, seconds: float = PATIENCE_SECONDS) -> Check:
    """Check the server at ``address``, or where ``TEMPORAL_*`` and ``temporal.toml`` say: namespace, attributes."""
    try:
        config = client_config(address)
    except StackError as e:
        return from_error(_SERVER, "temporal.toml or TEMPORAL_*", e)
    namespace = config.get("namespace") or "default"
    found = f"{without_user_info(config.get('target_host') or '')}, namespace {namespace}"
    try:
        return asyncio.run(asyncio.wait_for(_check_server(address, found), seconds))
    except TimeoutError:
        return broken(_SERVER, found, f"it did not answer within {seconds:.1f} s", "start it, or set TEMPORAL_ADDRESS")
    except StackError as e:
        return from_error(_SERVER, found, e)
    except RPCError as e:
        if wrong := setup_problem(e, namespace):
            return broken(_SERVER, found, *wrong)
        return broken(_SERVER, found, f"it answers with an error: {without_user_info(e.message)}", "see its log")


async def _check_server(address: str | None, found: str) -> Check:
    client = await connect(address)
    wrong, attributes_told = await look_at_setup(client)
    if wrong:
        return broken(_SERVER, found, *wrong)
    if not attributes_told:
        names = ", ".join(key.name for key in SEARCH_ATTRIBUTES)
        problem = f"we may not ask for its search attributes; it needs {names}"
        return warning(_SERVER, found, problem, "look at the namespace's search attributes")
    return ok(_SERVER, f"{found}, search attributes registered")
