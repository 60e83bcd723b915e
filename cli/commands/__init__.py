"""The commands, imported one by one when they are called."""
