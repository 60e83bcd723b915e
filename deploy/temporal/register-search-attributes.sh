#!/bin/sh
# Makes the search attributes of taskrunner known to a Temporal namespace. Run once for each namespace; repeating it is fine.
# The address, namespace and credentials are those of the Temporal CLI: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, temporal.toml.
set -eu
for name in TaskStatus TaskStep WorkspaceBackend WorkspaceId; do
  "${TASKRUNNER_TEMPORAL_BIN:-temporal}" operator search-attribute create --name "$name" --type Keyword
done
