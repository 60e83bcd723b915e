"""Search attributes of a task's workflow. A module of its own: the command line does without Temporal's SDK."""

from temporalio.common import SearchAttributeKey

TASK_STATUS = SearchAttributeKey.for_keyword("TaskStatus")
TASK_STEP = SearchAttributeKey.for_keyword("TaskStep")
WORKSPACE_BACKEND = SearchAttributeKey.for_keyword("WorkspaceBackend")
WORKSPACE_ID = SearchAttributeKey.for_keyword("WorkspaceId")
SEARCH_ATTRIBUTES = (TASK_STATUS, TASK_STEP, WORKSPACE_BACKEND, WORKSPACE_ID)
