-- The registry. Each enum mirrors one in messages/statuses.py, in the same order.

CREATE TYPE task_status AS ENUM ('queued', 'running', 'completed', 'failed', 'cancelled');
CREATE TYPE task_step AS ENUM (
    'preflight', 'provisioning', 'waiting_for_ready', 'verifying', 'creating_session', 'session_running',
    'awaiting_followup', 'releasing'
);
CREATE TYPE workspace_status AS ENUM (
    'pending', 'provisioning', 'online', 'degraded', 'restarting', 'stopping', 'failed', 'removed'
);
CREATE TYPE session_status AS ENUM ('starting', 'running', 'completed', 'failed', 'interrupted', 'cancelled');
CREATE TYPE verdict AS ENUM ('ready', 'failed', 'timed_out');
CREATE TYPE backend_kind AS ENUM ('local', 'worktree', 'container', 'vm');
CREATE TYPE readiness AS ENUM ('callback', 'probe', 'immediate');
CREATE TYPE failure_source AS ENUM (
    'preflight', 'provider', 'bootstrap', 'provision_timeout', 'probe', 'exit', 'sweep'
);
CREATE TYPE event_kind AS ENUM (
    'task_status', 'task_step', 'workspace_status', 'session_status', 'verdict', 'WORKSPACE_PROVISION_FAILED',
    'result_saved', 'leak_suspected'
);
CREATE TYPE boot_status AS ENUM ('started', 'completed', 'failed');
CREATE TYPE workspace_state AS ENUM ('booting', 'ready', 'degraded');

CREATE TABLE tasks (
    id text PRIMARY KEY,
    status task_status NOT NULL,
    step task_step,
    backend backend_kind NOT NULL,
    readiness readiness NOT NULL,
    template text NOT NULL,
    workspace_id text NOT NULL,
    workflow_id text NOT NULL,
    input jsonb NOT NULL,
    digest text NOT NULL,
    idempotency_key text UNIQUE,
    host_id text,
    base_commit text,
    provision_timeout_seconds integer,
    provision_timeout_rule text,
    error text,
    error_type text,
    failure jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    CHECK (error <> '')
);
CREATE INDEX tasks_newest ON tasks (created_at DESC, id DESC);
CREATE INDEX tasks_newest_by_status ON tasks (status, created_at DESC, id DESC);

CREATE TABLE workspaces (
    id text PRIMARY KEY,
    task_id text NOT NULL REFERENCES tasks,
    backend backend_kind NOT NULL,
    status workspace_status NOT NULL,
    attempt integer NOT NULL CHECK (attempt >= 1),
    owner_workflow_id text NOT NULL,
    host_id text,
    name text,
    harness_url text,
    verdict verdict, -- the current attempt's, so that a callback is answered from this row alone
    heartbeat_state workspace_state,
    heartbeat_reason text,
    heartbeat jsonb,
    last_heartbeat_at timestamptz,
    leak_suspected_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX workspaces_of_task ON workspaces (task_id);
CREATE INDEX workspaces_newest ON workspaces (created_at DESC, id DESC);

CREATE TABLE attempts (
    workspace_id text NOT NULL REFERENCES workspaces,
    attempt integer NOT NULL CHECK (attempt >= 1),
    task_id text NOT NULL REFERENCES tasks,
    workflow_id text NOT NULL,
    host_id text NOT NULL,
    verdict verdict,
    verdict_at timestamptz,
    failure_source failure_source,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, attempt)
);

CREATE TABLE boot_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    step text NOT NULL,
    status boot_status NOT NULL,
    message text NOT NULL,
    detail text,
    "timestamp" timestamptz NOT NULL,
    FOREIGN KEY (workspace_id, attempt) REFERENCES attempts,
    UNIQUE (workspace_id, attempt, step, status, "timestamp") -- a repeated callback is one entry
);

CREATE TABLE sessions (
    id text PRIMARY KEY,
    task_id text NOT NULL REFERENCES tasks,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    turn integer NOT NULL CHECK (turn >= 1),
    status session_status NOT NULL,
    exit_code bigint,
    summary text,
    error text,
    output_bytes bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    FOREIGN KEY (workspace_id, attempt) REFERENCES attempts,
    UNIQUE (task_id, attempt, turn)
);

-- Pieces follow each other without gap or overlap; bytea, because text cannot hold NUL.
CREATE TABLE session_output (
    session_id text NOT NULL REFERENCES sessions,
    start bigint NOT NULL CHECK (start >= 0),
    data bytea NOT NULL CHECK (octet_length(data) > 0),
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, start)
);

-- Whoever writes an event holds its task's row lock, so that the ids of one task's events are in the order of their
-- commits and a reader that continues after an id misses none; the clock is read when the lock is held.
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id text REFERENCES tasks,
    workspace_id text,
    attempt integer,
    session_id text,
    kind event_kind NOT NULL,
    previous text,
    current text,
    detail jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX events_of_task ON events (task_id, id);
CREATE UNIQUE INDEX events_one_failure_an_attempt ON events (workspace_id, attempt)
    WHERE kind = 'WORKSPACE_PROVISION_FAILED';

CREATE TABLE kept_callbacks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_id text NOT NULL,
    signal text NOT NULL,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    session_id text,
    payload jsonb NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz
);
CREATE UNIQUE INDEX kept_callbacks_once ON kept_callbacks (workspace_id, attempt, signal, coalesce(session_id, ''));
CREATE INDEX kept_callbacks_undelivered ON kept_callbacks (id) WHERE delivered_at IS NULL;

CREATE TABLE results (
    task_id text PRIMARY KEY REFERENCES tasks,
    result jsonb NOT NULL,
    patch bytea,
    bundle bytea,
    saved_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_tokens (
    name text PRIMARY KEY,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_tokens_by_hash ON api_tokens (sha256);

CREATE FUNCTION notify_of_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.task_id IS NOT NULL THEN
        PERFORM pg_notify('taskrunner', NEW.task_id);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_of_event AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION notify_of_event();

CREATE FUNCTION notify_of_output() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('taskrunner', (SELECT task_id FROM sessions WHERE id = NEW.session_id));
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_of_output AFTER INSERT ON session_output FOR EACH ROW EXECUTE FUNCTION notify_of_output();
