"""Deterministic code: what is decided, never how it is done. Imports ``messages`` and the SDK, nothing else."""
