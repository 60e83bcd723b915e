-- Environment values that were submitted with a task, sealed under the installation's key of that id. They are written
-- with the task, and deleted when its release begins or it ends.

CREATE TABLE task_env (
    task_id text PRIMARY KEY REFERENCES tasks,
    key_id text NOT NULL,
    sealed bytea NOT NULL CHECK (octet_length(sealed) > 0)
);
