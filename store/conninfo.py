"""The address of the database, which holds a password: checked before anybody can put it into an error."""

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from store.errors import InvalidDatabaseUrl

_FORM = "write it as postgresql://user:password@host:port/name, with %40 for @, %2F for / and %25 for % in the password"


def check_database_url(url: str) -> None:
    """Return where ``url`` is in libpq's form; raise :class:`InvalidDatabaseUrl`, without a word of it, where not.

    libpq quotes what it cannot read, and a password with a character that was not encoded is read as a host, a port
    or a name: what passes here is quoted by nobody, or is no part of a password.
    """
    try:
        parts = conninfo_to_dict(url)
    except (ProgrammingError, ValueError):
        # Not chained: a traceback of the cause would show what it quotes.
        raise InvalidDatabaseUrl(f"not an address that PostgreSQL's library can read; {_FORM}") from None
    ports = str(parts.get("port") or "").split(",")
    if not all(port == "" or (port.isascii() and port.isdecimal()) for port in ports):
        raise InvalidDatabaseUrl(f"its port is not a number; {_FORM}")
    is_uri = url.startswith(("postgresql://", "postgres://"))
    if is_uri and any("@" in str(parts.get(name) or "") for name in ("host", "dbname")):
        raise InvalidDatabaseUrl(f"it holds more than one @; {_FORM}")
