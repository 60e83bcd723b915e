"""What a user meets for whom permissions count: tests run as root, who may do everything."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_NOBODY = 65534


def as_nobody(work: Callable[[], T]) -> T:
    """Return what ``work`` returns to a user without any right; to ourselves where we are not root."""
    if os.geteuid() != 0:
        return work()
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            os.write(writer, pickle.dumps(work()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # the tests go on in the parent alone
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        returned = told.read()
    assert os.waitpid(pid, 0)[1] == 0
    return pickle.loads(returned)
