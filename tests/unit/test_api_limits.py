"""Which body may be how large."""

import pytest

from api.limits import MAX_TASK_BODY_BYTES, body_limit
from messages.callbacks import MAX_BODY_BYTES, MAX_OUTPUT_BODY_BYTES


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/api/workspaces/w-1/ready", MAX_BODY_BYTES),
        ("/api/workspaces/w-1/sessions/s-1/finished", MAX_BODY_BYTES),
        ("/api/workspaces/w-1/sessions/s-1/output", MAX_OUTPUT_BODY_BYTES),
        ("/api/workspaces/w-1/sessions/s-1/output/more", MAX_BODY_BYTES),
        ("/api/workspaces/w-1/x/sessions/s-1/output", MAX_BODY_BYTES),
        ("/api/callbacks/phone-home/x", MAX_BODY_BYTES),
        ("/api/tasks", MAX_TASK_BODY_BYTES),
        ("/elsewhere", MAX_TASK_BODY_BYTES),
    ],
)
def test_the_limit_follows_from_the_path(path: str, limit: int) -> None:
    """S36."""
    assert body_limit(path) == limit
