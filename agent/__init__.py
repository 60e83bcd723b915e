"""The workspace agent: prepares a checkout, serves HTTP, reports ready or failed, beats, runs sessions.

It runs inside a workspace, where nothing can be installed, so it needs nothing but Python's standard library (3.9 or
newer, on Linux 5.3 or newer) and travels as one zipapp (``agent/build.py``).
"""

__version__ = "0.2.0"
