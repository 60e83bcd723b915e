"""Where workspaces live: one module a backend, all behind the contract in ``contract``."""
