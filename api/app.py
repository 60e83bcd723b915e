"""The API as an ASGI application."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import callbacks, health, metrics, openapi, problems, tasks, workspaces
from api.dependencies import ApiDependencies, Services
from api.limits import BodyLimit, HostCheck


def create_app(given: ApiDependencies, *, loopback: bool = False, callbacks_only: bool = False) -> FastAPI:
    """Return the application. While it runs (ASGI lifespan), stored callbacks are delivered.

    ``loopback`` tells that only this machine reaches it, proxies on it included: then Host headers are checked.
    ``callbacks_only``: it answers workspaces and knows no other route.
    """
    services = Services(given)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        deliverer = asyncio.create_task(services.forwarder.deliver_stored(), name="deliver stored callbacks")
        try:
            yield
        finally:
            services.closing.set()
            deliverer.cancel()
            await asyncio.gather(deliverer, return_exceptions=True)

    # Without its schema an app has no documentation either, and no files of its own for that.
    app = (FastAPI if callbacks_only else FastAPIOffline)(
        title="taskrunner",
        version=version("taskrunner"),
        description="Submits tasks, follows them, and takes the callbacks of workspaces.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        openapi_url=None if callbacks_only else "/openapi.json",
    )
    app.state.services = services
    app.state.loopback = loopback
    problems.install(app)
    for module in (callbacks,) if callbacks_only else (health, metrics, callbacks, tasks, workspaces):
        app.include_router(module.router)
    if not callbacks_only:
        openapi.install(app, problems.ProblemBody)
    app.add_middleware(BodyLimit)
    if loopback:
        app.add_middleware(HostCheck, names=given.allowed_hosts)
    app.add_middleware(metrics.Measured)
    return app
