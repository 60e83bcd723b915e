"""The API's description. Bodies are read by :mod:`api.limits`, so FastAPI has to be told of their models."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
_models: set[type[BaseModel]] = set()


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route that reads a body of this model."""
    _models.add(model)
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def text_answer(media_type: str, *, binary: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route whose 200 is no JSON."""
    schema = {"type": "string", **({"format": "binary"} if binary else {})}
    return {200: {"content": {media_type: {"schema": schema}}}}


def install(app: FastAPI, model_of_problems: type[BaseModel]) -> None:
    """Make ``app`` describe the bodies it reads and the problems it answers with."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            models = sorted(_models | {model_of_problems}, key=lambda model: model.__name__)
            _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            schemas: dict[str, Any] = description.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions.get("$defs", {}).items():
                schemas.setdefault(name, schema)
            problem = {"schema": {"$ref": _REF.format(model=model_of_problems.__name__)}}
            error = {"description": "A problem (RFC 9457)", "content": {"application/problem+json": problem}}
            for path in description["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = error
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = describe
