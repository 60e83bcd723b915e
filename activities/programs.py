"""Whether an agent's program is there, before anything is made for it."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from activities.errors import BackendUnusable
from messages.tasks import TaskInput
from messages.templates import how_to_install


def require_program(task: TaskInput, env: Mapping[str, str], host_id: str) -> None:
    """Raise :class:`BackendUnusable` where the program of the task's agent is not on this host, saying how to mend it.

    ``env`` is what a workspace gets of the worker's environment: the program is looked for as its agent will do. Not
    judged is what cannot be known yet: a path within the checkout, what ``setup`` may install, a ``PATH`` submitted
    with the task.
    """
    template = task.template
    program = template.agent.program
    if program is None or template.setup or "PATH" in task.env_names:
        return
    if "/" in program:
        if program.startswith("/") and shutil.which(program) is None:
            raise BackendUnusable(_missing(program, f"is not on host {host_id!r}, or cannot be executed"))
        return
    own = template.env if "PATH" not in template.required_env else {}
    folders = own.get("PATH", env.get("PATH", os.defpath)).split(os.pathsep)
    if not all(Path(folder).is_absolute() for folder in folders):
        return  # a part of it is in the checkout
    if shutil.which(program, path=os.pathsep.join(folders)) is None:
        raise BackendUnusable(_missing(program, f"is not on the PATH of host {host_id!r}"))


def _missing(program: str, where: str) -> str:
    return f"the agent's program {program[:200]!r} {where}; {how_to_install(program)}"
