"""PostgreSQL: the one that is named, or the embedded one."""

import os
import re
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from cli.doctor.check import Check, broken, from_error, ok, warning
from cli.doctor.programs import Programs, version_in
from cli.home import StackRecord
from messages.file_errors import trouble_with
from store.conninfo import check_database_url
from store.errors import RegistryError
from store.schema import SchemaState, look_at_schema
from workers.children import last_words
from workers.errors import StackError
from workers.postgres import broken_configuration, broken_data, require_data_folder
from workers.postgres_programs import SYSTEM_USER, foresee_programs

_NAME = "postgresql"
_OLDEST = 16
"""Of servers: as docs/operations/deployment.md says."""


def check_database(url: str) -> Check:
    """Check the database of ``TASKRUNNER_DATABASE_URL``: reachable, new enough, and of this release's schema."""
    try:
        check_database_url(url)
    except RegistryError as e:
        return from_error(_NAME, "TASKRUNNER_DATABASE_URL", e)
    found = _shown(url)
    try:
        state = look_at_schema(url)
    except RegistryError as e:
        return broken(_NAME, found, *_explained(str(e)))
    return _check_schema(f"{found}, PostgreSQL {state.server_version // 10_000}", state)


def _shown(url: str) -> str:
    """Return what of the address is no secret."""
    parts = conninfo_to_dict(url)
    where = str(parts.get("host") or parts.get("hostaddr") or "the local socket")
    port = f":{parts['port']}" if parts.get("port") else ""
    name = parts.get("dbname") or parts.get("user") or "the default database"
    return f"{name} at {where}{port}"


def _explained(said: str) -> tuple[str, str]:
    """Return what psycopg's words mean, and what to do."""
    text = re.sub(r"^.*FATAL:\s*", "", " ".join(said.split())).strip()
    if re.search(r"password authentication failed|no password supplied|role .* does not exist", text):
        return text, "correct the user and the password in TASKRUNNER_DATABASE_URL"
    if missing := re.search(r'database "(.*)" does not exist', text):
        return text, f"createdb {missing[1]}, as a user of that server who may"
    text = re.sub(r"^connection failed: |\s*Is the server running.*$", "", text)
    return f"it cannot be used: {text}", "start PostgreSQL there, or correct TASKRUNNER_DATABASE_URL"


def _check_schema(found: str, state: SchemaState) -> Check:
    if state.newer:
        problem = f"its schema is of a newer release ({state.newer[-1]})"
        return broken(_NAME, found, problem, "use that release of taskrunner, or another database")
    if state.missing:
        return broken(_NAME, found, f"its schema is not up to date (without {state.missing[0]})", "taskrunner migrate")
    if state.server_version // 10_000 < _OLDEST:
        return warning(_NAME, found, f"older than PostgreSQL {_OLDEST}, which this release is made for", "upgrade it")
    return ok(_NAME, f"{found}, schema up to date")


def check_embedded(programs: Programs, home: Path, record: StackRecord | None) -> Check:
    """Check the programs of the embedded server and its data; where the home's stack runs, its database too."""
    try:
        folder, first = foresee_programs()
        said = programs.ask(str(folder / "postgres"), "--version")
    except StackError as e:
        return from_error(_NAME, "embedded", e)
    except (OSError, TimeoutError) as e:
        return broken(_NAME, "embedded", f"it cannot be used: {e}", "install taskrunner again")
    version = version_in(said.text)
    if said.code != 0 or version is None:
        words = last_words(said.text.splitlines())
        return broken(_NAME, f"embedded ({folder})", f"it does not run: {words}", "install taskrunner again")
    found = f"embedded, {version} ({folder})"
    if record is not None and record.is_alive:
        try:
            return _check_schema(found, look_at_schema(record.database_url))
        except RegistryError as e:
            return broken(_NAME, found, f"its server does not answer: {_explained(str(e))[0]}", f"kill {record.pid}")
    try:
        _check_data(programs, folder, home / "postgres")
    except StackError as e:
        return from_error(_NAME, found, e)
    except TimeoutError as e:
        return broken(_NAME, found, f"its data cannot be looked at: {e}", "taskrunner doctor, again")
    except OSError as e:
        problem, mend = trouble_with(home / "postgres", e, home=home)
        return broken(_NAME, found, problem, mend.removeprefix("run: "))
    return ok(_NAME, f"{found}; {first}" if first else found)


def _check_data(programs: Programs, folder: Path, data: Path) -> None:
    """Raise ``StackError`` where the server would not start on ``data``, as far as PostgreSQL's programs can tell."""
    if not require_data_folder(data, SYSTEM_USER if os.geteuid() == 0 else None):
        return
    control = programs.ask(str(folder / "pg_controldata"), "-D", str(data), share=0.3)
    if control.code != 0 or "CRC" in control.text:
        raise broken_data(data, "global/pg_control makes no sense")
    settings = programs.ask(str(folder / "postgres"), "-C", "port", "-D", str(data), share=0.3)
    if settings.code != 0:
        raise broken_configuration(data, last_words(settings.text.splitlines()).partition("FATAL:")[2].strip())
