"""An address of the database that cannot be read is refused, and nobody repeats what it holds."""

import traceback

import pytest

from store.conninfo import check_database_url
from store.errors import InvalidDatabaseUrl, RegistryError
from store.registry import Registry
from store.schema import migrate

MALFORMED = [
    "postgresql://me:hunter%zz2@db/tasks",
    "postgresql://me:hunter/2@db/tasks",  # read as host "me", port "hunter"
    "postgresql://me:123/hunter2@db/tasks",  # read as host "me", port 123
    "postgresql://me:a@hunter2@db/tasks",  # read as host "hunter2@db"
    "postgresql://me:hunter 2@db/tasks",
    "postgresql+asyncpg://me:hunter2@db/tasks",
    "me:hunter2@db/tasks",
    "host=db password='hunter2",
    "host=db password=x port=hunter2",
    "postgresql://me:hunter2@db/tasks?hunter2=1",
    "postgresql://me:hunter2\udcff@db/tasks",
    "hunter2",
]


@pytest.mark.parametrize("url", MALFORMED)
async def test_what_is_no_address_is_refused_without_being_quoted(url: str) -> None:
    """S37: neither in the error nor in what a log would show of its causes."""
    with pytest.raises(InvalidDatabaseUrl) as refused:
        check_database_url(url)
    with pytest.raises(RegistryError) as connecting:
        async with Registry.connect(url):
            pass
    with pytest.raises(RegistryError) as migrating:
        migrate(url)
    for error in (refused.value, connecting.value, migrating.value):
        shown = str(error) + "".join(traceback.format_exception(error, chain=True))
        assert "hunter" not in shown
        assert "postgresql://user:password@host" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter%402@db:5432/tasks?sslmode=require",
        "postgres://me@[::1]:5433/tasks",
        "postgresql://one:1,two:2/tasks?target_session_attrs=read-write",
        "postgresql://postgres:@/tasks?host=%2Fhome%2Fme%2Fpostgres",
        "postgresql:///tasks",
        "host=/run/postgresql dbname=tasks user=me password='a b@c'",
        "dbname=odd@name",
        "",
    ],
)
def test_every_form_that_libpq_knows_is_taken(url: str) -> None:
    check_database_url(url)
