-- What a workspace says in a heartbeat, called so in messages/statuses.py too: its status is another thing.
ALTER TYPE workspace_state RENAME TO heartbeat_state;
