"""What a Temporal namespace has to have for us, how to tell that it does not, and the command that mends it.

Waiting does not help here, unlike where Temporal is away.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from messages.search_attributes import SEARCH_ATTRIBUTES

_SCRIPT = Path(__file__).parents[1] / "deploy" / "temporal" / "register-search-attributes.sh"


class SetupProblem(NamedTuple):
    """What is wrong with the namespace, and the command (or what else) that mends it."""

    problem: str
    mend: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.problem}; mend it: {self.mend}"


class SetupLook(NamedTuple):
    """What a look at the namespace has shown: what it lacks, if anything, and whether its search attributes were told.

    They are not where we may not ask for them; then nothing is known to lack.
    """

    problem: SetupProblem | None
    attributes_told: bool


async def look_at_setup(client: Client) -> SetupLook:
    """Ask whether the namespace has all that we need, by one request each for itself and its search attributes.

    Raises ``RPCError`` or ``RuntimeError`` where Temporal does not answer.
    """
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
        missing = await _missing_attributes(client)
    except RPCError as e:
        if problem := setup_problem(e, client.namespace):
            return SetupLook(problem, attributes_told=False)
        raise
    problem = _attributes_missing(client.namespace, missing) if missing else None
    return SetupLook(problem, attributes_told=missing is not None)


async def _missing_attributes(client: Client) -> list[str] | None:
    """Return the search attributes that are not registered as we need them; None where we may not ask."""
    try:
        answer = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as e:
        if e.status in {RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED}:
            return None
        raise
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    return [key.name for key in SEARCH_ATTRIBUTES if answer.custom_attributes.get(key.name) != keyword]


def setup_problem(error: RPCError, namespace: str) -> SetupProblem | None:
    """Return the lack in the namespace that an error of Temporal tells of; None where it tells of something else."""
    if namespace_is_missing(error):
        return SetupProblem(
            f"Temporal has no namespace {namespace!r}", f"temporal operator namespace create --namespace {namespace}"
        )
    if error.status in {RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED}:
        return SetupProblem("Temporal does not let us in", "set TEMPORAL_API_KEY, or correct temporal.toml")
    if error.status is RPCStatusCode.INVALID_ARGUMENT and "search attribute" in error.message.lower():
        named = [key.name for key in SEARCH_ATTRIBUTES if key.name in error.message]
        return _attributes_missing(namespace, named or [key.name for key in SEARCH_ATTRIBUTES])
    return None


def namespace_is_missing(error: RPCError) -> bool:
    """Tell whether it is the namespace that was not found, and not something in it."""
    with contextlib.suppress(Exception):
        return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)
    return False


def _attributes_missing(namespace: str, names: list[str]) -> SetupProblem:
    return SetupProblem(
        f"search attributes are missing in Temporal's namespace {namespace!r} (as Keyword): {', '.join(names)}",
        # The script takes the namespace from where we do. Temporal's CLI takes several names and makes the first alone.
        str(_SCRIPT)
        if _SCRIPT.exists()
        else f"for name in {' '.join(names)}; do temporal operator search-attribute create --namespace {namespace}"
        " --type Keyword --name $name; done",
    )
