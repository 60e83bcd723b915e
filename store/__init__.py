"""PostgreSQL: the registry that records guarded transitions, and nothing else.

Nothing here decides: workflows do. :class:`store.registry.Registry` is the way in.
"""
