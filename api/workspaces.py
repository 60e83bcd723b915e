"""What users see of workspaces, and of the templates that they can be made from."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.dependencies import USER_ROUTE, Api, EmptyIsNone
from api.problems import Problem
from api.templates import TemplateDetails, TemplateError, TemplateList, details_of, list_of
from messages.names import is_id
from messages.statuses import WorkspaceStatus
from messages.views import WorkspaceView

router = APIRouter(prefix="/api", tags=["workspaces"], dependencies=USER_ROUTE)


class WorkspaceList(BaseModel):
    """Workspaces, newest first."""

    workspaces: list[WorkspaceView]


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
        return await asyncio.to_thread(list_of, api.templates)
    except TemplateError as e:
        raise Problem(500, "templates-unreadable", str(e)) from None


@router.get("/templates/{name}", tags=["templates"])
async def show_template(name: str, api: Api) -> TemplateDetails:
    """Show a template with its effective provision timeout."""
    try:
        return await asyncio.to_thread(details_of, api.templates, name, api.given.environ)
    except TemplateError as e:
        raise Problem(404, "unknown-template", str(e)) from None
