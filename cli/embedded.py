"""The stack's parts that run in this process: the API and the worker."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from api import server
from api.dependencies import ApiDependencies
from api.templates import TemplateFolder
from cli.doors import CallbackDoors
from cli.home import Home, StackRecord
from messages.keys import Keyring
from messages.settings import Settings
from store.registry import Registry
from store.schema import migrate
from workers.client import connect
from workers.worker import HostSettings, running_worker


@asynccontextmanager
async def running_services(
    settings: Settings,
    home: Home,
    record: StackRecord,
    environ: Mapping[str, str],
    *,
    keys: Keyring,
    templates: TemplateFolder,
    listeners: Sequence[socket.socket],
) -> AsyncGenerator[dict[str, "asyncio.Task[None]"]]:
    """Serve the API on each of ``listeners``, and work for it, while the context lasts.

    Temporal and PostgreSQL are those that ``record`` names; ``environ`` is the user's environment, for workspaces.

    Yields each part's task by name; one that ends cannot go on.
    """
    await asyncio.to_thread(migrate, record.database_url)
    client = await connect(record.temporal_address)
    async with Registry.connect(record.database_url) as registry:
        await registry.tokens.add("embedded", home.make_token())
        if settings.api_token is not None:  # what the commands show in this environment
            await registry.tokens.add("environment", settings.api_token.get_secret_value())
        else:
            await registry.tokens.remove("environment")
        given = ApiDependencies(
            registry=registry,
            temporal=client,
            keys=keys,
            templates=templates,
            host_id=settings.host_id,
            ui_url=record.ui_url,
            allowed_hosts=settings.host_names,
        )
        doors = CallbackDoors(given, home.path)
        host = HostSettings(
            host_id=settings.host_id,
            home=home.path,
            api_url=settings.public_url or record.api_url,
            public_url=settings.public_url,
            open_door=doors.open,
            environ=environ,
        )
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(doors)
            running: dict[str, asyncio.Task[None]] = {}
            for listener in listeners:
                api = await parts.enter_async_context(server.running(given, sock=listener))
                running[f"the API at {api.url}"] = api.task
            running["the worker"] = await parts.enter_async_context(running_worker(client, registry, keys, host))
            yield running
