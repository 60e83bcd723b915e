"""Processes: the worker, the servers that the embedded stack starts, and the connection to Temporal."""
