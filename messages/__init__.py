"""What crosses a process border: frozen models, wire names, error types, activity contracts.

Everything else imports this package and it imports nothing of ours, so a workflow, an activity, the API and the
command line can agree on one definition of each name.
"""
