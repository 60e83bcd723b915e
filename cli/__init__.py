"""The ``taskrunner`` command."""
