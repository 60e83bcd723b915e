"""The task API: submit, list, show, follow, cancel."""

import asyncio
import hashlib
import json
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, StringConstraints

from api import streams
from api.dependencies import USER_ROUTE, Api, EmptyIsNone, Services
from api.limits import read_body
from api.openapi import json_body, text_answer
from api.problems import Problem, registry_away
from api.templates import TemplateError, resolve
from api.workflows_client import cancel_task, require_worker, start_task, task_progress
from messages.keys import Keyring
from messages.names import is_id
from messages.sealed import env_digest, seal_env
from messages.statuses import BackendKind, TaskStatus, TaskStep
from messages.tasks import SavedResult, TaskInput, TaskOutcome, TaskProgress, TaskRequest
from messages.views import TaskPage, TaskView
from store.errors import InvalidCursor, NotStorable, RegistryUnavailable, TaskConflict

MAX_KEY_CHARS = 255
MAX_CURSOR_CHARS = 500
MAX_OFFSET = 2**62

EVENTS_TYPE = "text/event-stream"
LINES_TYPE = "application/x-ndjson"
PATCH_TYPE = "text/x-diff"
BUNDLE_TYPE = "application/x-git-bundle"

Cursor = Annotated[str, StringConstraints(max_length=MAX_CURSOR_CHARS)]

router = APIRouter(prefix="/api/tasks", tags=["tasks"], dependencies=USER_ROUTE)


class CancelAnswer(BaseModel):
    """That the cancellation of the task ``id`` is asked for; ``detail`` is for people."""

    id: str
    detail: str


@router.post(
    "",
    status_code=201,
    response_model=TaskView,
    openapi_extra=json_body(TaskRequest),
    responses={200: {"model": TaskView, "description": "A repeat: the task that was submitted by the same request."}},
)
async def submit(
    request: Request,
    api: Api,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JSONResponse:
    """Submit a task. The same id, or Idempotency-Key, and the same body: 200 with the same task; another body: 409."""
    asked = await read_body(request, TaskRequest, what="task")
    if idempotency_key is not None and not (
        0 < len(idempotency_key) <= MAX_KEY_CHARS and idempotency_key.isprintable()
    ):
        raise Problem(400, "invalid-key", f"the Idempotency-Key has to be 1 to {MAX_KEY_CHARS} printable characters")
    keys, tasks = api.given.keys, api.registry.tasks
    digest = _digest(asked, keys)
    try:
        # What was taken stays taken, whatever has become of its template or of its host's worker since.
        submission = await tasks.find_submitted(asked.id, digest=digest, idempotency_key=idempotency_key)
        if submission is None:
            task = await _task(api, asked)
            env = seal_env(keys, task.task_id, asked.env_values()) if asked.env else None
            submission = await tasks.create(task, digest=digest, idempotency_key=idempotency_key, env=env)
    except TaskConflict as e:
        raise Problem(
            409,
            "task-conflict",
            f"{e}; use another id or Idempotency-Key, or send the same request to get that task",
            task_id=e.task_id,
        ) from None
    except NotStorable as e:
        raise Problem(422, "invalid-task", f"the task cannot be recorded: {e}") from None
    task_id = submission.task.task_id
    if submission.status is TaskStatus.QUEUED:
        await start_task(api.temporal, submission.task)
    view = await _view(api, task_id)
    if view.status is TaskStatus.CANCELLED and submission.status is TaskStatus.QUEUED:
        # Cancelled between the look at the row and the start: what was started then has nobody left who wants it.
        await cancel_task(api.temporal, task_id)
    return JSONResponse(
        view.model_dump(mode="json"),
        201 if submission.created else 200,
        {"Location": f"/api/tasks/{task_id}"},
    )


@router.get("")
async def list_tasks(  # noqa: PLR0917 (FastAPI passes them by name)
    api: Api,
    status: Annotated[TaskStatus | None, EmptyIsNone] = None,
    step: Annotated[TaskStep | None, EmptyIsNone] = None,
    backend: Annotated[BackendKind | None, EmptyIsNone] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[Cursor | None, EmptyIsNone] = None,
) -> TaskPage:
    """List tasks, newest first."""
    try:
        return await api.registry.tasks.list(status=status, step=step, backend=backend, limit=limit, cursor=cursor)
    except InvalidCursor:
        raise Problem(400, "invalid-parameter", "parameter cursor: not one that this API gave out") from None


@router.get("/{task_id}")
async def show(task_id: str, api: Api) -> TaskView:
    """Show a task, whole."""
    return await _view(api, task_id)


@router.get(
    "/{task_id}/events",
    response_class=StreamingResponse,
    responses={
        **text_answer(EVENTS_TYPE),
        204: {"description": "The task has ended, and nothing is left after Last-Event-ID."},
    },
)
async def events(
    task_id: str,
    api: Api,
    last_event_id: Annotated[str | None, Header()] = None,
    follow: bool = True,
) -> Response:
    """Stream the task's transitions as server-sent events, from ``Last-Event-ID`` on, until the task has ended."""
    after = 0
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 19):
            raise Problem(400, "invalid-parameter", "Last-Event-ID has to be the id of an event of this API, a number")
        after = int(last_event_id)
    view = await _view(api, task_id)
    if last_event_id and view.status.is_final and not await api.registry.tasks.events(task_id, after=after, limit=1):
        # Tells an EventSource, which reconnects after every end, that there is no more to come.
        return Response(status_code=204)
    stream = streams.events(api, task_id, after=after, step=view.step, ended=view.status.is_final, follow=follow)
    return StreamingResponse(stream, media_type=EVENTS_TYPE, headers=streams.HEADERS)


@router.get("/{task_id}/logs", response_class=StreamingResponse, responses=text_answer("text/plain"))
async def logs(
    task_id: str,
    api: Api,
    follow: bool = False,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
) -> Response:
    """Return the session's output from byte ``offset`` on; with ``follow``, as it comes, until the task has ended."""
    view = await _view(api, task_id)
    stream = streams.output(api, task_id, offset=offset, ended=view.status.is_final, follow=follow)
    return StreamingResponse(stream, media_type="text/plain; charset=utf-8", headers=streams.HEADERS)


@router.get("/{task_id}/boot-log", response_class=StreamingResponse, responses=text_answer(LINES_TYPE))
async def boot_log(
    task_id: str,
    api: Api,
    follow: bool = False,
    after: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
) -> Response:
    """Return the workspace's boot log after the entry of that id, one JSON object a line; ``follow`` as for logs."""
    view = await _view(api, task_id)
    stream = streams.boot_log(api, task_id, after=after, ended=view.status.is_final, follow=follow)
    return StreamingResponse(stream, media_type=LINES_TYPE, headers=streams.HEADERS)


@router.get("/{task_id}/diff", response_class=Response, responses=text_answer(PATCH_TYPE))
async def diff(task_id: str, api: Api) -> Response:
    """Return what the task's agent changed, as a patch for ``git apply``."""
    view = await _view(api, task_id)
    patch = await api.registry.results.patch(task_id)
    if patch is not None:
        return Response(patch, media_type=PATCH_TYPE)
    if view.result is None:
        raise _no_change(view)
    raise Problem(
        404,
        "patch-too-large",
        f"the change of task {task_id!r} is too large to be kept as a patch; it is {_where(view, view.result)}",
    )


@router.get("/{task_id}/bundle", response_class=Response, responses=text_answer(BUNDLE_TYPE, binary=True))
async def bundle(task_id: str, api: Api) -> Response:
    """Return what the task's agent changed, as a git bundle, where it was not left on a branch of a repository."""
    view = await _view(api, task_id)
    content = await api.registry.results.bundle(task_id)
    if content is not None:
        disposition = f'attachment; filename="{task_id}.bundle"'
        return Response(content, media_type=BUNDLE_TYPE, headers={"Content-Disposition": disposition})
    if view.result is None:
        raise _no_change(view)
    raise Problem(
        404, "no-bundle", f"the change of task {task_id!r} is not in a bundle; it is {_where(view, view.result)}"
    )


@router.get("/{task_id}/progress")
async def progress(task_id: str, api: Api) -> TaskProgress:
    """Tell what a task that runs waits for, since when, until when, and the last error.

    Its workflow answers, but for what only the activity under way knows, which is in the task's row.
    """
    view = await _view(api, task_id)
    found = None if view.status.is_final else await task_progress(api.temporal, task_id)
    if found is None:
        raise Problem(
            409, "no-workflow", f"task {task_id!r} is {view.status.value}, and no workflow of it runs; GET it instead"
        )
    verifying = found.step is TaskStep.CREATING_SESSION and view.step is TaskStep.VERIFYING
    return found.model_copy(
        update={
            "step": TaskStep.VERIFYING if verifying else found.step,
            "last_error": view.last_error or found.last_error,
        }
    )


@router.post("/{task_id}/cancel", status_code=202)
async def cancel(task_id: str, api: Api) -> CancelAnswer:
    """Ask for the task's cancellation; it has ended once its workspace is released."""
    if not is_id(task_id):
        raise _unknown(task_id)
    try:
        view = await _view(api, task_id)
        if view.status.is_final:
            raise _already_final(view)
    except RegistryUnavailable:
        view = None  # Temporal alone can cancel
    if await cancel_task(api.temporal, task_id):
        return CancelAnswer(id=task_id, detail="the cancellation was asked for; the workspace is released first")
    if view is None:
        raise registry_away()
    if view.status is TaskStatus.QUEUED:
        outcome = TaskOutcome(status=TaskStatus.CANCELLED, error="cancelled before it was started")
        if await api.registry.tasks.finish(task_id, outcome):
            return CancelAnswer(id=task_id, detail="the task was cancelled before it was started")
    view = await _view(api, task_id)
    if view.status.is_final:
        raise _already_final(view)
    raise Problem(
        409,
        "no-workflow",
        f"task {task_id!r} is recorded as {view.status.value}, but Temporal runs no workflow {view.workflow_id!r};"
        " it was terminated or Temporal lost its data; look for what it left in its workspace",
    )


async def _task(api: Services, asked: TaskRequest) -> TaskInput:
    """Return the task that a new request asks for; raise the 422 for what cannot run."""
    try:
        task = await asyncio.to_thread(resolve, asked, api.templates, host_id=api.given.host_id)
    except TemplateError as e:
        raise Problem(422, "invalid-task", f"the task cannot run as asked: {e}") from None
    if task.repository is not None and task.repository.host is not None:
        await require_worker(api.temporal, task.repository.host)
    return task


async def _view(api: Services, task_id: str) -> TaskView:
    view = await api.registry.tasks.get(task_id) if is_id(task_id) else None
    if view is None:
        raise _unknown(task_id)
    return view.model_copy(update={"ui_url": api.ui_link(view.workflow_id)})


def _unknown(task_id: str) -> Problem:
    return Problem(404, "unknown-task", f"there is no task {task_id[:100]!r}; GET /api/tasks lists what there is")


def _no_change(view: TaskView) -> Problem:
    if view.status.is_final:
        return Problem(404, "no-change", f"task {view.id!r} kept no change: nothing was changed")
    return Problem(404, "no-change", f"task {view.id!r} still runs; what it changes is saved at its end")


def _where(view: TaskView, result: SavedResult) -> str:
    """Return where the change is, and how to get at it."""
    commits = f"from {result.base_commit} to {result.commit}"
    if result.bundle:
        return (
            f"in a git bundle, {commits}: GET /api/tasks/{view.id}/bundle (taskrunner diff {view.id} --bundle FILE),"
            f" then git fetch FILE {result.branch}"
        )
    if result.pushed_to:
        return f"on branch {result.branch!r} of {result.pushed_to}, {commits}: git fetch origin {result.branch}"
    repository = f" of {result.repository_path}" if result.repository_path else ""
    return f"on branch {result.branch!r}{repository}, {commits}"


def _already_final(view: TaskView) -> Problem:
    return Problem(409, "already-final", f"task {view.id!r} is {view.status.value} already; there is nothing to cancel")


def _digest(asked: TaskRequest, keys: Keyring) -> str:
    """Return what tells two requests apart: SHA-256 of the request's canonical JSON, defaults left out.

    The digest is stored: ``env`` enters it as a keyed hash, so that nobody can try values on it.
    """
    content = asked.model_dump(mode="json", exclude_defaults=True, exclude={"env"})
    if asked.env:
        content["env"] = env_digest(keys, asked.env_values())
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
