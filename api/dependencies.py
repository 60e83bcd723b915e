"""What the API is made of, and how routes get at it."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from temporalio.client import Client

from api.auth import CallbackAuth, UserAuth, UserCredentials
from api.forwarding import Forwarder
from api.problems import MAX_SHOWN_CHARS, unknown_parameter
from api.single_flight import SingleFlight
from api.templates import TemplateFolder
from messages.keys import Keyring
from store.records import AttemptState
from store.registry import Registry


@dataclass(frozen=True)
class ApiDependencies:
    """What an API process is given.

    temporal: a client with the pydantic data converter; it may be lazy, for Temporal may be away at the start.
    host_id: the host of repositories that are given as a path without one.
    ui_url: where people see Temporal's UI, without a trailing slash; None where there is none.
    environ: the environment by which the effective provision timeout of a template is shown.
    allowed_hosts: the names beside addresses and ``localhost`` that a Host header may hold on loopback.
    """

    registry: Registry
    temporal: Client
    keys: Keyring
    templates: TemplateFolder
    host_id: str
    ui_url: str | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    allowed_hosts: frozenset[str] = frozenset()


class Services:
    """What the routes work with, made from the dependencies once per app. ``closing`` is set when the server stops."""

    def __init__(self, given: ApiDependencies) -> None:
        self.given = given
        self.registry = given.registry
        self.temporal = given.temporal
        self.templates = given.templates
        self.forwarder = Forwarder(given.temporal, given.registry)
        self.callback_auth = CallbackAuth(given.keys)
        self.user_auth = UserAuth(given.registry.tokens)
        self.state_reads: SingleFlight[AttemptState | None] = SingleFlight()
        self.closing = asyncio.Event()

    def ui_link(self, workflow_id: str) -> str | None:
        """Return where Temporal's UI shows a workflow, or None where there is no UI."""
        if self.given.ui_url is None:
            return None
        return f"{self.given.ui_url.rstrip('/')}/namespaces/{self.temporal.namespace}/workflows/{workflow_id}"


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


EmptyIsNone = BeforeValidator(_empty_is_none)
"""Makes a query parameter that is there but empty count as left out."""

Api = Annotated[Services, Depends(_services)]


async def require_user(credentials: UserCredentials, api: Api) -> None:
    """Dependency of every user route: a valid API token."""
    await api.user_auth.check(credentials)


async def known_parameters(request: Request) -> None:
    """Dependency of user routes: refuses a query parameter that the route does not have.

    A misspelt filter would list everything.
    """
    known = [parameter.alias for parameter in cast(APIRoute, request.scope["route"]).dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise unknown_parameter(name[:MAX_SHOWN_CHARS], known)


USER_ROUTE = [Depends(require_user), Depends(known_parameters)]
"""What every user route depends on, in this order: nobody without a token learns more than that."""
