"""What the registry raises.

::

    RegistryError
    ├── RegistryUnavailable   PostgreSQL did not answer in time; the call may be repeated
    ├── TaskConflict          the id or the idempotency key stands for another request
    ├── AttemptSuperseded     the attempt is no longer the one that is wanted
    ├── NotStorable           the task holds what PostgreSQL cannot store
    ├── InvalidCursor         the cursor is none of this list's
    ├── UnknownSession        no such session in that workspace and attempt
    ├── OutputGap             output before this piece is missing
    ├── InvalidDatabaseUrl    the database's address cannot be read; the text holds nothing of it
    └── MigrationError        the database cannot be brought to this release's schema
"""


class RegistryError(Exception):
    """The base of all errors of the registry."""


class RegistryUnavailable(RegistryError):
    """PostgreSQL could not be reached, or did not answer in time.

    Whether the call had an effect is not known; every call of the registry may be repeated.
    """


class TaskConflict(RegistryError):
    """The task id, or the idempotency key, belongs to a request that was different."""

    def __init__(self, task_id: str, text: str) -> None:
        super().__init__(text)
        self.task_id = task_id


class NotStorable(RegistryError):
    """The task holds what PostgreSQL cannot store; the text says what."""


class InvalidCursor(RegistryError):
    """The cursor was not given out with a page of this list."""


class AttemptSuperseded(RegistryError):
    """The workspace has a newer attempt, or is no longer to be provisioned."""


class UnknownSession(RegistryError):
    """There is no such session, or it belongs to another workspace or attempt."""


class OutputGap(RegistryError):
    """Output before this piece is missing; ``expected`` is the offset (bytes) that has to come next."""

    def __init__(self, session_id: str, expected: int) -> None:
        super().__init__(f"session {session_id}: output is stored up to byte {expected}; send from there")
        self.expected = expected


class InvalidDatabaseUrl(RegistryError):
    """The address of the database cannot be read. The text says why, and holds nothing of the address."""


class MigrationError(RegistryError):
    """The database does not fit this release; the text says what to do."""
