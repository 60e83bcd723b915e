"""The figures by name, and how each is measured."""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from cli.bench import containers, orchestration
from cli.bench.errors import NotMeasured
from cli.bench.figures import Figure, Missing
from cli.bench.names import NAMES
from cli.bench.workplace import Stack, Workplace, run_command, run_program, running_stack, workplace
from messages.names import random_id, task_workflow_id

Progress = Callable[[str], None]


class Measuring:
    """One run of the bench: the stack is started when the first figure needs it."""

    def __init__(
        self, place: Workplace, parts: AsyncExitStack, n: int | None, image: str | None, progress: Progress
    ) -> None:
        self._place = place
        self._image = image
        self._parts = parts
        self._n = n
        self._progress = progress
        self._stack: Stack | None = None

    async def figure(self, name: str) -> Figure:
        """Measure one figure. Raises ``NotMeasured``."""
        n = self._n or NAMES[name]
        self._progress(f"{name}: {n} times")
        measure: Callable[[int], Awaitable[Figure]] = getattr(self, f"_{name}")
        return await measure(n)

    async def _running(self) -> Stack:
        if self._stack is None:
            self._progress("starting a stack")
            self._stack = await self._parts.enter_async_context(running_stack(self._place))
        return self._stack

    async def _cli_help(self, n: int) -> Figure:
        environ = self._place.environ(self._place.folder / "home")
        ours: list[float] = []
        floor: list[float] = []
        for number in range(n + 1):
            took = await run_command(environ, self._place.folder, "--help")
            python = await run_program([sys.executable, "-I", "-c", "pass"], environ, self._place.folder)
            if number > 0:  # the first one reads the files from the disk
                ours.append(took)
                floor.append(python)
        return Figure.of("cli_help", "s", ours, floor)

    async def _first_output_cold(self, n: int) -> Figure:
        return Figure.of("first_output_cold", "s", [await self._cold(number) for number in range(n)])

    async def _cold(self, number: int) -> float:
        home = self._place.folder / f"cold-{number}"
        return await self._echo(self._place.environ(home), random_id("t"))

    async def _first_output_warm(self, n: int) -> Figure:
        environ = self._place.environ((await self._running()).home)
        samples = [await self._echo(environ, random_id("t")) for _ in range(n + 1)]
        return Figure.of("first_output_warm", "s", samples[1:])

    async def _echo(self, environ: dict[str, str], task_id: str) -> float:
        return await run_command(
            environ,
            self._place.repository,
            *("run", "--backend", "worktree", "--id", task_id, "echo hello"),
            first_byte=True,
        )

    async def _history_events(self, n: int) -> Figure:
        stack = await self._running()
        tasks = [random_id("t") for _ in range(n)]
        for task in tasks:
            await self._echo(self._place.environ(stack.home), task)
        lengths = await orchestration.history_events(stack, [task_workflow_id(task) for task in tasks])
        return Figure.of("history_events", "events", lengths)

    async def _ready_to_session(self, n: int) -> Figure:
        return Figure.of("ready_to_session", "ms", *await orchestration.ready_to_session(await self._running(), n))

    async def _tasks_per_second(self, n: int) -> Figure:
        return Figure.of("tasks_per_second", "1/s", *await orchestration.tasks_per_second(await self._running(), n))

    async def _container_ready(self, n: int) -> Figure:
        image = await containers.find_image(self._image)
        self._progress(f"container_ready: image {image.name}")
        samples = await containers.container_ready(await self._running(), self._place, image, n)
        return Figure.of("container_ready", "s", *samples)

    async def _poller_2s(self, n: int) -> Figure:
        return Figure.of("poller_2s", "ms", await orchestration.polled_2s(await self._running(), n))


async def measure(
    names: Sequence[str], n: int | None, image: str | None, progress: Progress
) -> AsyncGenerator[Figure | Missing]:
    """Measure these figures one after the other, and yield each, or why it was not; leave nothing behind."""
    async with AsyncExitStack() as parts:
        place = await parts.enter_async_context(workplace(progress))
        measuring = Measuring(place, parts, n, image, progress)
        for name in names:
            try:
                yield await measuring.figure(name)
            except NotMeasured as e:
                yield Missing(name, str(e))
