"""Images: used where they are there, otherwise pulled once for all who wait for them, telling how far it is."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from activities.backends.docker_engine import Docker, FailureFields, Sdk, said, status_of
from activities.errors import ProvisionFailed, ProvisionInterrupted
from activities.threads import in_daemon_thread
from messages.statuses import FailureSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SAY_EVERY_SECONDS = 1.0
_SILENT_SECONDS = 600.0
"""How long a registry, or the unpacking of a layer, may be without news."""


class Images:
    """The images of one daemon."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker
        self._locks: dict[str, asyncio.Lock] = {}

    async def obtain(self, image: str, progress: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
        """Return what Docker knows of ``image``, pulled first where it is not there.

        Raises ``ProvisionFailed``: ``ProvisionInterrupted`` where the registry may answer another time.
        """
        if found := await self._find(image):
            return found
        lock = self._locks.setdefault(image, asyncio.Lock())
        async with lock:
            if found := await self._find(image):
                return found
            await self._pull(image, progress)
        if len(self._locks) > 100:
            self._locks = {name: lock for name, lock in self._locks.items() if lock.locked()}
        if found := await self._find(image):
            return found
        raise ProvisionInterrupted(f"image {image} was pulled and is gone again", source=FailureSource.PROVIDER)

    async def _find(self, image: str) -> dict[str, Any] | None:
        from docker.errors import APIError, ImageNotFound

        try:
            return await self._docker.call(lambda client: client.inspect_image(image))
        except ImageNotFound:
            return None
        except APIError as e:
            if status_of(e) == 400 or "invalid reference" in said(e).lower():
                raise ProvisionFailed(
                    f"{image!r} is no image's name ({said(e)}); correct container.image", source=FailureSource.PROVIDER
                ) from e
            raise _refused(image, said(e)) from e

    async def _pull(self, image: str, progress: Callable[[str], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[str] = asyncio.Queue()
        stopped = False

        def pull(client: Sdk) -> None:
            seen: dict[str, tuple[int, int]] = {}
            told = 0.0
            repository, tag = _split(image)
            for line in client.pull(repository, tag=tag, stream=True, decode=True):
                if stopped:
                    return
                if error := line.get("error"):
                    raise _refused(image, str(error))
                detail: dict[str, int] = line.get("progressDetail") or {}
                if line.get("id") and detail.get("total"):
                    seen[f"{line['id']} {line['status']}"] = (detail.get("current", 0), detail["total"])
                if (now := time.monotonic()) - told >= _SAY_EVERY_SECONDS:
                    told = now
                    loop.call_soon_threadsafe(news.put_nowait, _how_far(image, seen))

        def work() -> None:
            from docker.errors import APIError

            try:
                self._docker.call_blocking(pull, timeout=_SILENT_SECONDS)
            except APIError as e:
                raise _refused(image, said(e)) from e

        async def tell() -> None:
            while True:
                await progress(await news.get())

        telling = asyncio.create_task(tell(), name=f"progress of {image}")
        try:
            await in_daemon_thread(work)
        finally:
            stopped = True
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


def _split(image: str) -> tuple[str, str]:
    """Return repository and tag (or digest) of an image's name; without either, ``latest``."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    folder, slash, name = image.rpartition("/")
    name, _, tag = name.partition(":")
    return f"{folder}{slash}{name}", tag or "latest"


def _how_far(image: str, seen: dict[str, tuple[int, int]]) -> str:
    layers = {name.partition(" ")[0]: size for name, size in seen.items() if name.endswith(" Downloading")}
    if not layers:
        return f"pulling image {image}"
    current, total = (sum(part) / 1e6 for part in zip(*layers.values(), strict=True))
    return f"pulling image {image}: {current:.0f} of {total:.0f} MB so far"


def _refused(image: str, text: str) -> ProvisionFailed:
    """Return what a registry's refusal means: what may pass is tried again."""
    low = text.lower()
    fields = FailureFields(source=FailureSource.PROVIDER, detail=text)
    if "no space left on device" in low:
        return ProvisionFailed(
            f"image {image} cannot be pulled: no space left on Docker's disk; free some (docker system prune)", **fields
        )
    if "unauthorized" in low or "authentication required" in low or "no basic auth" in low or "denied" in low:
        missing = "it does not exist, or " if "does not exist" in low else ""
        registry = image.partition("/")[0] if "." in image.partition("/")[0] or ":" in image.partition("/")[0] else ""
        return ProvisionFailed(
            f"image {image} cannot be pulled: {missing}the registry wants other credentials; "
            f"run docker login {registry}".rstrip()
            + " as the worker's user",
            **fields,
        )
    if "not found" in low or "manifest unknown" in low or "does not exist" in low or "no matching manifest" in low:
        return ProvisionFailed(
            f"image {image} cannot be found ({text}); correct container.image, or build it: docker build -t {image} …",
            **fields,
        )
    if "invalid reference" in low:
        return ProvisionFailed(f"{image!r} is no image's name ({text}); correct container.image", **fields)
    return ProvisionInterrupted(f"image {image} cannot be pulled: {text}", **fields)
