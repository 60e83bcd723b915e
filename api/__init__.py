"""HTTP: the receiver of workspaces' callbacks, and the task API; the client side of Temporal."""
