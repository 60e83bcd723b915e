"""Errors as RFC 9457 problem details: what happened, to what, and what the caller can do."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from messages.validation import explain, violations
from store.errors import MigrationError, RegistryUnavailable

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 2
MAX_SHOWN_CHARS = 200
"""How much of a path, or of the name of a parameter, is shown to whoever sent it."""
_SHOWN_ERRORS = 20

_log = logging.getLogger(__name__)


class Problem(Exception):
    """An answer that is an error. Raised anywhere below a route, it becomes the response.

    ``code`` is a stable name for programs; ``detail`` is for people and ends with what they can do; ``extra`` are
    further members of the body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def response(self, request: Request) -> JSONResponse:
        """Return the response to ``request``."""
        body = {
            "type": f"urn:taskrunner:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": _shown_path(request),
            **self.extra,
        }
        return JSONResponse(body, self.status, self.headers, PROBLEM_JSON)


class FieldProblem(BaseModel):
    """What is wrong with one field of a body, or one parameter."""

    field: str
    message: str


class ProblemBody(BaseModel):
    """The body of every error (RFC 9457), for the API's description; the last ones are there where they say something.

    ``task_id`` is the task that an id or a key stands for, ``expected_offset`` where the next output has to begin.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem] | None = None
    task_id: str | None = None
    expected_offset: int | None = None


def unavailable(what: str, hint: str = "try again in a moment") -> Problem:
    """Return the 503 for a part of the service that is away; it says when to come back."""
    return Problem(503, "unavailable", f"{what}; {hint}", headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def not_set_up(what: str, problem: str, hint: str) -> Problem:
    """Return the 503 for a part of the service that lacks something: it does not help to come back alone."""
    return Problem(503, "not-set-up", f"{what}: {problem}; {hint}")


def registry_away() -> Problem:
    """Return the 503 for PostgreSQL being away."""
    return unavailable("the registry (PostgreSQL) is not available and the request needs it")


def unknown_parameter(name: str, known: Sequence[str]) -> Problem:
    """Return the 400 for a query parameter that a route does not have."""
    near = difflib.get_close_matches(name, known, n=1)
    what_there_is = f"known: {', '.join(known)}" if known else "no parameter is"
    return _invalid_parameters(
        [{"field": name, "message": f"is not known here; {f'did you mean {near[0]!r}?' if near else what_there_is}"}]
    )


def _invalid_parameters(errors: Sequence[Mapping[str, str]]) -> Problem:
    detail = "; ".join(f"parameter {e['field']}: {e['message']}" for e in errors[:3])
    return Problem(400, "invalid-parameter", detail, errors=errors[:_SHOWN_ERRORS])


def _shown_path(request: Request) -> str:
    path = request.url.path
    return path if len(path) <= MAX_SHOWN_CHARS else f"{path[:MAX_SHOWN_CHARS]}..."


def invalid_body(error: ValidationError, what: str) -> Problem:
    """Return the 400 for a body that does not fit its model: each field, and what is wrong with it.

    The offending values are left out: they may be long, or secret.
    """
    errors = [{"field": violation.field or "(body)", "message": violation.text} for violation in violations(error)]
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(
        400,
        "invalid-body",
        f"the {what} is not valid: {first['field']}: {first['message']}{more}",
        errors=errors[:_SHOWN_ERRORS],
    )


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem."""

    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return error.response(request)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        details = {
            404: f"there is nothing at {_shown_path(request)}; /docs lists what there is",
            405: f"{request.method} is not possible at {_shown_path(request)}",
        }
        detail = details.get(error.status_code, error.detail)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return Problem(error.status_code, code, detail, headers=error.headers).response(request)

    async def on_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = [{"field": str(e["loc"][-1]), "message": explain(e)} for e in error.errors()]
        return _invalid_parameters(errors).response(request)

    async def on_registry_away(request: Request, _: Exception) -> JSONResponse:
        return registry_away().response(request)

    async def on_wrong_schema(request: Request, error: Exception) -> JSONResponse:
        return not_set_up("the registry cannot be used", str(error), "then try again").response(request)

    async def on_disconnect(request: Request, _: Exception) -> JSONResponse:
        return Problem(400, "incomplete-body", "the connection ended within the request's body").response(request)

    async def on_bug(request: Request, _: Exception) -> JSONResponse:
        return Problem(
            500, "internal", "an unexpected error, which is in the API's log with its cause; nothing is known to help"
        ).response(request)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_parameters)
    app.add_exception_handler(RegistryUnavailable, on_registry_away)
    app.add_exception_handler(MigrationError, on_wrong_schema)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_bug)
