"""What users see of workspaces, and of the templates that they can be made from."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from api.dependencies import Api, EmptyIsNone, require_user
from api.problems import Problem
from api.templates import TemplateError
from messages.names import is_id
from messages.statuses import BackendKind, Readiness, WorkspaceStatus
from messages.templates import Template
from messages.timeouts import resolve_provision_timeout, runtime_warning
from messages.views import WorkspaceView

router = APIRouter(prefix="/api", tags=["workspaces"], dependencies=[Depends(require_user)])


class WorkspaceList(BaseModel):
    """Workspaces, newest first."""

    workspaces: list[WorkspaceView]


class TemplateSummary(BaseModel):
    """A template in a list; ``warning`` says what is doubtful about it."""

    name: str
    backend: BackendKind
    runtime: str | None
    readiness: Readiness
    warning: str | None


class TemplateList(BaseModel):
    """Every usable template, and by file why others are not usable."""

    templates: list[TemplateSummary]
    broken: dict[str, str]


class TemplateDetails(BaseModel):
    """A template, whole, and the provision timeout that it gets in this process's environment."""

    template: dict[str, Any]
    readiness: Readiness
    provision_timeout_seconds: int
    provision_timeout_rule: str
    warning: str | None


@router.get("/workspaces")
async def list_workspaces(
    api: Api,
    status: Annotated[WorkspaceStatus | None, EmptyIsNone] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> WorkspaceList:
    """List workspaces, newest first, without their boot logs."""
    return WorkspaceList(workspaces=await api.registry.workspaces.list(status=status, limit=limit))


@router.get("/workspaces/{workspace_id}")
async def show_workspace(workspace_id: str, api: Api) -> WorkspaceView:
    """Show a workspace with its boot log."""
    view = await api.registry.workspaces.get(workspace_id) if is_id(workspace_id) else None
    if view is None:
        raise Problem(
            404,
            "unknown-workspace",
            f"there is no workspace {workspace_id[:100]!r}; GET /api/workspaces lists what there is",
        )
    return view


@router.get("/templates", tags=["templates"])
async def list_templates(api: Api) -> TemplateList:
    """List the templates."""
    try:
        templates, broken = api.templates.all(), api.templates.broken()
    except TemplateError as e:
        raise Problem(500, "templates-unreadable", str(e)) from None
    return TemplateList(templates=[_summary(template) for template in templates], broken=broken)


@router.get("/templates/{name}", tags=["templates"])
async def show_template(name: str, api: Api) -> TemplateDetails:
    """Show a template with its effective provision timeout."""
    try:
        template = api.templates.find(name)
    except TemplateError as e:
        raise Problem(404, "unknown-template", str(e)) from None
    timeout = resolve_provision_timeout(template, api.given.environ)
    return TemplateDetails(
        template=template.model_dump(mode="json"),
        readiness=template.effective_readiness,
        provision_timeout_seconds=timeout.seconds,
        provision_timeout_rule=timeout.rule,
        warning=runtime_warning(template),
    )


def _summary(template: Template) -> TemplateSummary:
    return TemplateSummary(
        name=template.name,
        backend=template.backend,
        runtime=template.runtime,
        readiness=template.effective_readiness,
        warning=runtime_warning(template),
    )
