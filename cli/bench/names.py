"""The figures by name, and how often each is measured where nobody says."""

NAMES = {
    "cli_help": 10,
    "first_output_cold": 3,
    "first_output_warm": 10,
    "history_events": 3,
    "ready_to_session": 20,
    "poller_2s": 20,
    "tasks_per_second": 15,
    "container_ready": 10,
}
