--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: backend_kind; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.backend_kind AS ENUM (
    'local',
    'worktree',
    'container',
    'vm'
);


--
-- Name: boot_status; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.boot_status AS ENUM (
    'started',
    'completed',
    'failed'
);


--
-- Name: event_kind; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.event_kind AS ENUM (
    'task_status',
    'task_step',
    'workspace_status',
    'session_status',
    'verdict',
    'WORKSPACE_PROVISION_FAILED',
    'result_saved',
    'leak_suspected'
);


--
-- Name: failure_source; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.failure_source AS ENUM (
    'preflight',
    'provider',
    'bootstrap',
    'provision_timeout',
    'probe',
    'exit',
    'sweep'
);


--
-- Name: readiness; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.readiness AS ENUM (
    'callback',
    'probe',
    'immediate'
);


--
-- Name: session_status; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.session_status AS ENUM (
    'starting',
    'running',
    'completed',
    'failed',
    'interrupted',
    'cancelled'
);


--
-- Name: task_status; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.task_status AS ENUM (
    'queued',
    'running',
    'completed',
    'failed',
    'cancelled'
);


--
-- Name: task_step; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.task_step AS ENUM (
    'preflight',
    'provisioning',
    'waiting_for_ready',
    'verifying',
    'creating_session',
    'session_running',
    'awaiting_followup',
    'releasing'
);


--
-- Name: verdict; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.verdict AS ENUM (
    'ready',
    'failed',
    'timed_out'
);


--
-- Name: workspace_state; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.workspace_state AS ENUM (
    'booting',
    'ready',
    'degraded'
);


--
-- Name: workspace_status; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.workspace_status AS ENUM (
    'pending',
    'provisioning',
    'online',
    'degraded',
    'restarting',
    'stopping',
    'failed',
    'removed'
);


--
-- Name: notify_of_event(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.notify_of_event() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.task_id IS NOT NULL THEN
        PERFORM pg_notify('taskrunner', NEW.task_id);
    END IF;
    RETURN NULL;
END
$$;


--
-- Name: notify_of_output(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.notify_of_output() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('taskrunner', (SELECT task_id FROM sessions WHERE id = NEW.session_id));
    RETURN NULL;
END
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: api_tokens; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.api_tokens (
    name text NOT NULL,
    sha256 bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT api_tokens_sha256_check CHECK ((octet_length(sha256) = 32))
);


--
-- Name: attempts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.attempts (
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    task_id text NOT NULL,
    workflow_id text NOT NULL,
    host_id text NOT NULL,
    verdict public.verdict,
    verdict_at timestamp with time zone,
    failure_source public.failure_source,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT attempts_attempt_check CHECK ((attempt >= 1))
);


--
-- Name: boot_log; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.boot_log (
    id bigint NOT NULL,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    step text NOT NULL,
    status public.boot_status NOT NULL,
    message text NOT NULL,
    detail text,
    "timestamp" timestamp with time zone NOT NULL
);


--
-- Name: boot_log_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.boot_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.boot_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    id bigint NOT NULL,
    task_id text,
    workspace_id text,
    attempt integer,
    session_id text,
    kind public.event_kind NOT NULL,
    previous text,
    current text,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: events_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: kept_callbacks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kept_callbacks (
    id bigint NOT NULL,
    workflow_id text NOT NULL,
    signal text NOT NULL,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    session_id text,
    payload jsonb NOT NULL,
    kept_at timestamp with time zone DEFAULT now() NOT NULL,
    delivered_at timestamp with time zone
);


--
-- Name: kept_callbacks_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.kept_callbacks ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.kept_callbacks_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: results; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.results (
    task_id text NOT NULL,
    result jsonb NOT NULL,
    patch bytea,
    bundle bytea,
    saved_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: schema_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.schema_migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: session_output; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_output (
    session_id text NOT NULL,
    start bigint NOT NULL,
    data bytea NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT session_output_data_check CHECK ((octet_length(data) > 0)),
    CONSTRAINT session_output_start_check CHECK ((start >= 0))
);


--
-- Name: sessions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sessions (
    id text NOT NULL,
    task_id text NOT NULL,
    workspace_id text NOT NULL,
    attempt integer NOT NULL,
    turn integer NOT NULL,
    status public.session_status NOT NULL,
    exit_code bigint,
    summary text,
    error text,
    output_bytes bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT sessions_turn_check CHECK ((turn >= 1))
);


--
-- Name: tasks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tasks (
    id text NOT NULL,
    status public.task_status NOT NULL,
    step public.task_step,
    backend public.backend_kind NOT NULL,
    readiness public.readiness NOT NULL,
    template text NOT NULL,
    workspace_id text NOT NULL,
    workflow_id text NOT NULL,
    input jsonb NOT NULL,
    digest text NOT NULL,
    idempotency_key text,
    host_id text,
    base_commit text,
    provision_timeout_seconds integer,
    provision_timeout_rule text,
    error text,
    error_type text,
    failure jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT tasks_error_check CHECK ((error <> ''::text))
);


--
-- Name: workspaces; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.workspaces (
    id text NOT NULL,
    task_id text NOT NULL,
    backend public.backend_kind NOT NULL,
    status public.workspace_status NOT NULL,
    attempt integer NOT NULL,
    owner_workflow_id text NOT NULL,
    host_id text,
    name text,
    harness_url text,
    verdict public.verdict,
    heartbeat_state public.workspace_state,
    heartbeat_reason text,
    heartbeat jsonb,
    last_heartbeat_at timestamp with time zone,
    leak_suspected_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT workspaces_attempt_check CHECK ((attempt >= 1))
);


--
-- Data for Name: api_tokens; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.api_tokens VALUES ('embedded', '\x5af8571881cb1f4ba29422a71b61a43a30687e715c0839e1881fe13db0891c89', '2026-11-21 05:21:20.032849+00');


--
-- Data for Name: attempts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.attempts VALUES ('w-7czcs42v4x', 1, 'changed', 'task-changed', 'build-1', 'ready', '2026-11-21 05:21:22.618732+00', NULL, '2026-11-21 05:21:22.471479+00');
INSERT INTO public.attempts VALUES ('w-v2rp3blmo7', 1, 'bundled', 'task-bundled', 'build-1', 'ready', '2026-11-21 05:21:24.714531+00', NULL, '2026-11-21 05:21:24.436648+00');
INSERT INTO public.attempts VALUES ('w-vt4inmy527', 1, 'unchanged', 'task-unchanged', 'build-1', 'ready', '2026-11-21 05:21:26.328259+00', NULL, '2026-11-21 05:21:26.135312+00');
INSERT INTO public.attempts VALUES ('w-xgpc5sr6z6', 1, 'failed', 'task-failed', 'build-1', 'ready', '2026-11-21 05:21:27.783876+00', NULL, '2026-11-21 05:21:27.604416+00');
INSERT INTO public.attempts VALUES ('w-itbrfqa2zv', 1, 'unready', 'task-unready', 'build-1', 'failed', '2026-11-21 05:21:29.153338+00', 'bootstrap', '2026-11-21 05:21:28.977026+00');
INSERT INTO public.attempts VALUES ('w-uckgy7dzyb', 1, 'cancelled', 'task-cancelled', 'build-1', 'ready', '2026-11-21 05:21:30.531469+00', NULL, '2026-11-21 05:21:30.321529+00');


--
-- Data for Name: boot_log; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (1, 'w-7czcs42v4x', 1, 'listening', 'completed', 'the workspace agent takes sessions', NULL, '2026-11-21 05:21:22.696+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (2, 'w-v2rp3blmo7', 1, 'listening', 'completed', 'the workspace agent takes sessions', NULL, '2026-11-21 05:21:24.787+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (3, 'w-vt4inmy527', 1, 'listening', 'completed', 'the workspace agent takes sessions', NULL, '2026-11-21 05:21:26.393+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (4, 'w-xgpc5sr6z6', 1, 'listening', 'completed', 'the workspace agent takes sessions', NULL, '2026-11-21 05:21:27.836+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (5, 'w-itbrfqa2zv', 1, 'checkout', 'started', 'new empty repository', NULL, '2026-11-21 05:21:29.073+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (6, 'w-itbrfqa2zv', 1, 'checkout', 'completed', 'new empty repository', NULL, '2026-11-21 05:21:29.124+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (7, 'w-itbrfqa2zv', 1, 'setup[0]', 'started', 'echo no compiler here; exit 4', NULL, '2026-11-21 05:21:29.128+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (8, 'w-itbrfqa2zv', 1, 'setup[0]', 'failed', 'setup[0] exited with 4: echo no compiler here; exit 4', 'no compiler here
', '2026-11-21 05:21:29.13+00');
INSERT INTO public.boot_log OVERRIDING SYSTEM VALUE VALUES (9, 'w-uckgy7dzyb', 1, 'listening', 'completed', 'the workspace agent takes sessions', NULL, '2026-11-21 05:21:30.587+00');


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (1, 'changed', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:22.367896+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (2, 'changed', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:22.418668+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (3, 'changed', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:22.421447+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (4, 'changed', 'w-7czcs42v4x', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:22.476312+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (5, 'changed', 'w-7czcs42v4x', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:22.477174+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (6, 'changed', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:22.477648+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (7, 'changed', 'w-7czcs42v4x', 1, NULL, 'verdict', NULL, 'ready', '{}', '2026-11-21 05:21:22.621955+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (8, 'changed', 'w-7czcs42v4x', 1, NULL, 'workspace_status', 'provisioning', 'online', '{}', '2026-11-21 05:21:22.622557+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (9, 'changed', NULL, NULL, NULL, 'task_step', 'provisioning', 'verifying', '{}', '2026-11-21 05:21:22.62418+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (10, 'changed', NULL, NULL, NULL, 'task_step', 'verifying', 'creating_session', '{}', '2026-11-21 05:21:22.712156+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (11, 'changed', 'w-7czcs42v4x', 1, 's-7ff586d8e989517d9fd93335-1', 'session_status', NULL, 'starting', '{}', '2026-11-21 05:21:22.713354+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (12, 'changed', 'w-7czcs42v4x', 1, 's-7ff586d8e989517d9fd93335-1', 'session_status', 'starting', 'running', '{}', '2026-11-21 05:21:22.758619+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (13, 'changed', NULL, NULL, NULL, 'task_step', 'creating_session', 'session_running', '{}', '2026-11-21 05:21:22.759775+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (14, 'changed', 'w-7czcs42v4x', 1, 's-7ff586d8e989517d9fd93335-1', 'session_status', 'running', 'completed', '{"exit_code": 0}', '2026-11-21 05:21:22.833176+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (15, 'changed', NULL, NULL, NULL, 'task_step', 'session_running', 'releasing', '{}', '2026-11-21 05:21:22.841953+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (16, 'changed', 'w-7czcs42v4x', 1, NULL, 'workspace_status', 'online', 'stopping', '{}', '2026-11-21 05:21:22.842868+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (17, 'changed', NULL, NULL, NULL, 'result_saved', NULL, NULL, '{"branch": "taskrunner/changed", "bundle": false, "commit": "a9b7a89ca9c36f293f168fe2167e7f03e885f626", "deletions": 0, "insertions": 1, "base_commit": "2fd2b964d702f31a6e78c2fd3a36673109b44fa4", "files_changed": 1, "repository_path": "/tmp/tr-cli-xkf2bha6/cwd/repository"}', '2026-11-21 05:21:23.011043+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (18, 'changed', 'w-7czcs42v4x', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:23.063499+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (19, 'changed', NULL, NULL, NULL, 'task_status', 'running', 'completed', '{}', '2026-11-21 05:21:23.084105+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (20, 'bundled', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:24.323896+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (21, 'bundled', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:24.399821+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (22, 'bundled', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:24.400402+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (23, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:24.440874+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (24, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:24.442444+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (25, 'bundled', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:24.443305+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (26, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'verdict', NULL, 'ready', '{}', '2026-11-21 05:21:24.719912+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (27, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'workspace_status', 'provisioning', 'online', '{}', '2026-11-21 05:21:24.720434+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (28, 'bundled', NULL, NULL, NULL, 'task_step', 'provisioning', 'verifying', '{}', '2026-11-21 05:21:24.72463+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (29, 'bundled', NULL, NULL, NULL, 'task_step', 'verifying', 'creating_session', '{}', '2026-11-21 05:21:24.80228+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (30, 'bundled', 'w-v2rp3blmo7', 1, 's-c2a058caa03a557c87bfc79a-1', 'session_status', NULL, 'starting', '{}', '2026-11-21 05:21:24.802623+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (31, 'bundled', 'w-v2rp3blmo7', 1, 's-c2a058caa03a557c87bfc79a-1', 'session_status', 'starting', 'running', '{}', '2026-11-21 05:21:24.833805+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (32, 'bundled', NULL, NULL, NULL, 'task_step', 'creating_session', 'session_running', '{}', '2026-11-21 05:21:24.834662+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (33, 'bundled', 'w-v2rp3blmo7', 1, 's-c2a058caa03a557c87bfc79a-1', 'session_status', 'running', 'completed', '{"exit_code": 0}', '2026-11-21 05:21:24.887045+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (34, 'bundled', NULL, NULL, NULL, 'task_step', 'session_running', 'releasing', '{}', '2026-11-21 05:21:24.889133+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (35, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'workspace_status', 'online', 'stopping', '{}', '2026-11-21 05:21:24.890437+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (36, 'bundled', NULL, NULL, NULL, 'result_saved', NULL, NULL, '{"branch": "taskrunner/bundled", "bundle": true, "commit": "4be7e77141e048bf2c71457dd059e6a338f252bf", "deletions": 0, "insertions": 1, "base_commit": "8262a12e8d75517525b051205c7f8db3efd72620", "files_changed": 1, "repository_path": null}', '2026-11-21 05:21:25.025178+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (37, 'bundled', 'w-v2rp3blmo7', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:25.064471+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (38, 'bundled', NULL, NULL, NULL, 'task_status', 'running', 'completed', '{}', '2026-11-21 05:21:25.078223+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (39, 'unchanged', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:26.093295+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (40, 'unchanged', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:26.120153+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (41, 'unchanged', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:26.120565+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (42, 'unchanged', 'w-vt4inmy527', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:26.137088+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (43, 'unchanged', 'w-vt4inmy527', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:26.137551+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (44, 'unchanged', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:26.137832+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (45, 'unchanged', 'w-vt4inmy527', 1, NULL, 'verdict', NULL, 'ready', '{}', '2026-11-21 05:21:26.331845+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (46, 'unchanged', 'w-vt4inmy527', 1, NULL, 'workspace_status', 'provisioning', 'online', '{}', '2026-11-21 05:21:26.332327+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (47, 'unchanged', NULL, NULL, NULL, 'task_step', 'provisioning', 'verifying', '{}', '2026-11-21 05:21:26.334868+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (48, 'unchanged', NULL, NULL, NULL, 'task_step', 'verifying', 'creating_session', '{}', '2026-11-21 05:21:26.404597+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (49, 'unchanged', 'w-vt4inmy527', 1, 's-16fc01257463512893fd1f03-1', 'session_status', NULL, 'starting', '{}', '2026-11-21 05:21:26.405011+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (50, 'unchanged', 'w-vt4inmy527', 1, 's-16fc01257463512893fd1f03-1', 'session_status', 'starting', 'running', '{}', '2026-11-21 05:21:26.415572+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (51, 'unchanged', NULL, NULL, NULL, 'task_step', 'creating_session', 'session_running', '{}', '2026-11-21 05:21:26.41829+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (52, 'unchanged', 'w-vt4inmy527', 1, 's-16fc01257463512893fd1f03-1', 'session_status', 'running', 'completed', '{"exit_code": 0}', '2026-11-21 05:21:26.464058+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (53, 'unchanged', NULL, NULL, NULL, 'task_step', 'session_running', 'releasing', '{}', '2026-11-21 05:21:26.465993+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (54, 'unchanged', 'w-vt4inmy527', 1, NULL, 'workspace_status', 'online', 'stopping', '{}', '2026-11-21 05:21:26.46659+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (55, 'unchanged', 'w-vt4inmy527', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:26.561022+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (56, 'unchanged', NULL, NULL, NULL, 'task_status', 'running', 'completed', '{}', '2026-11-21 05:21:26.578552+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (57, 'failed', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:27.489945+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (58, 'failed', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:27.587256+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (59, 'failed', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:27.587883+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (60, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:27.606086+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (61, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:27.606629+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (62, 'failed', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:27.606882+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (63, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'verdict', NULL, 'ready', '{}', '2026-11-21 05:21:27.787886+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (64, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'workspace_status', 'provisioning', 'online', '{}', '2026-11-21 05:21:27.788903+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (65, 'failed', NULL, NULL, NULL, 'task_step', 'provisioning', 'verifying', '{}', '2026-11-21 05:21:27.790541+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (66, 'failed', NULL, NULL, NULL, 'task_step', 'verifying', 'creating_session', '{}', '2026-11-21 05:21:27.850335+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (67, 'failed', 'w-xgpc5sr6z6', 1, 's-0e2104f68e6b5da1a60acebf-1', 'session_status', NULL, 'starting', '{}', '2026-11-21 05:21:27.850874+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (68, 'failed', 'w-xgpc5sr6z6', 1, 's-0e2104f68e6b5da1a60acebf-1', 'session_status', 'starting', 'running', '{}', '2026-11-21 05:21:27.872625+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (69, 'failed', NULL, NULL, NULL, 'task_step', 'creating_session', 'session_running', '{}', '2026-11-21 05:21:27.875574+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (70, 'failed', 'w-xgpc5sr6z6', 1, 's-0e2104f68e6b5da1a60acebf-1', 'session_status', 'running', 'failed', '{"error": "exited with 3", "exit_code": 3}', '2026-11-21 05:21:27.916616+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (71, 'failed', NULL, NULL, NULL, 'task_step', 'session_running', 'releasing', '{}', '2026-11-21 05:21:27.918477+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (72, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'workspace_status', 'online', 'stopping', '{}', '2026-11-21 05:21:27.91893+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (73, 'failed', 'w-xgpc5sr6z6', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:28.005766+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (75, 'unready', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:28.932703+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (78, 'unready', 'w-itbrfqa2zv', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:28.978723+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (79, 'unready', 'w-itbrfqa2zv', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:28.97926+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (80, 'unready', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:28.979593+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (82, 'unready', 'w-itbrfqa2zv', 1, NULL, 'verdict', NULL, 'failed', '{}', '2026-11-21 05:21:29.155618+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (83, 'unready', 'w-itbrfqa2zv', 1, NULL, 'WORKSPACE_PROVISION_FAILED', NULL, NULL, '{"error": "setup[0] exited with 4: echo no compiler here; exit 4", "detail": "no compiler here\n", "source": "bootstrap", "attempt": 1, "backend": "local", "timeout_secs": 600, "workspace_id": "w-itbrfqa2zv"}', '2026-11-21 05:21:29.155998+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (84, 'unready', 'w-itbrfqa2zv', 1, NULL, 'workspace_status', 'provisioning', 'failed', '{"error": "setup[0] exited with 4: echo no compiler here; exit 4"}', '2026-11-21 05:21:29.156536+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (96, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'verdict', NULL, 'ready', '{}', '2026-11-21 05:21:30.535865+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (97, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'workspace_status', 'provisioning', 'online', '{}', '2026-11-21 05:21:30.53624+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (107, 'cancelled', NULL, NULL, NULL, 'task_status', 'running', 'cancelled', '{"error": "the task was cancelled", "error_type": null}', '2026-11-21 05:21:32.189103+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (74, 'failed', NULL, NULL, NULL, 'task_status', 'running', 'failed', '{"error": "the session failed: exited with 3", "error_type": "SessionFailed"}', '2026-11-21 05:21:28.020727+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (87, 'unready', 'w-itbrfqa2zv', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:29.279134+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (90, 'cancelled', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:30.257455+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (93, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'workspace_status', NULL, 'pending', '{}', '2026-11-21 05:21:30.325802+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (94, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'workspace_status', 'pending', 'provisioning', '{}', '2026-11-21 05:21:30.326343+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (95, 'cancelled', NULL, NULL, NULL, 'task_step', 'preflight', 'provisioning', '{}', '2026-11-21 05:21:30.326692+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (98, 'cancelled', NULL, NULL, NULL, 'task_step', 'provisioning', 'verifying', '{}', '2026-11-21 05:21:30.54426+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (101, 'cancelled', 'w-uckgy7dzyb', 1, 's-3eb6b86c5b2a57b0b679446e-1', 'session_status', 'starting', 'running', '{}', '2026-11-21 05:21:30.60803+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (102, 'cancelled', NULL, NULL, NULL, 'task_step', 'creating_session', 'session_running', '{}', '2026-11-21 05:21:30.6116+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (76, 'unready', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:28.963134+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (77, 'unready', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:28.963654+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (85, 'unready', NULL, NULL, NULL, 'task_step', 'waiting_for_ready', 'releasing', '{}', '2026-11-21 05:21:29.158411+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (86, 'unready', 'w-itbrfqa2zv', 1, NULL, 'workspace_status', 'failed', 'stopping', '{}', '2026-11-21 05:21:29.159319+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (89, 'unready', NULL, NULL, NULL, 'task_status', 'running', 'failed', '{"error": "setup[0] exited with 4: echo no compiler here; exit 4", "error_type": "WorkspaceProvisionFailed"}', '2026-11-21 05:21:29.289984+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (103, 'cancelled', 'w-uckgy7dzyb', 1, 's-3eb6b86c5b2a57b0b679446e-1', 'session_status', 'running', 'cancelled', '{"error": "cancelled", "exit_code": 143}', '2026-11-21 05:21:32.083871+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (106, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'workspace_status', 'stopping', 'removed', '{}', '2026-11-21 05:21:32.174447+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (81, 'unready', NULL, NULL, NULL, 'task_step', 'provisioning', 'waiting_for_ready', '{}', '2026-11-21 05:21:28.99404+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (91, 'cancelled', NULL, NULL, NULL, 'task_status', 'queued', 'running', '{}', '2026-11-21 05:21:30.288934+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (92, 'cancelled', NULL, NULL, NULL, 'task_step', NULL, 'preflight', '{}', '2026-11-21 05:21:30.289462+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (99, 'cancelled', NULL, NULL, NULL, 'task_step', 'verifying', 'creating_session', '{}', '2026-11-21 05:21:30.597379+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (100, 'cancelled', 'w-uckgy7dzyb', 1, 's-3eb6b86c5b2a57b0b679446e-1', 'session_status', NULL, 'starting', '{}', '2026-11-21 05:21:30.597931+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (104, 'cancelled', NULL, NULL, NULL, 'task_step', 'session_running', 'releasing', '{}', '2026-11-21 05:21:32.087646+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (105, 'cancelled', 'w-uckgy7dzyb', 1, NULL, 'workspace_status', 'online', 'stopping', '{}', '2026-11-21 05:21:32.088204+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (108, 'queued', NULL, NULL, NULL, 'task_status', NULL, 'queued', '{}', '2026-11-21 05:21:32.356815+00');


--
-- Data for Name: kept_callbacks; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kept_callbacks OVERRIDING SYSTEM VALUE VALUES (1, 'task-queued', 'workspace_ready', 'w-queued', 1, NULL, '{"attempt": 1, "workspace_id": "w-queued"}', '2026-11-21 05:21:32.358673+00', NULL);


--
-- Data for Name: results; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.results VALUES ('changed', '{"branch": "taskrunner/changed", "bundle": false, "commit": "a9b7a89ca9c36f293f168fe2167e7f03e885f626", "deletions": 0, "insertions": 1, "base_commit": "2fd2b964d702f31a6e78c2fd3a36673109b44fa4", "files_changed": 1, "repository_path": "/tmp/tr-cli-xkf2bha6/cwd/repository"}', '\x64696666202d2d67697420612f524541444d4520622f524541444d450a696e64657820636530313336323530333062613864626139303666373536393637663965396361333934343634612e2e63656137626338636534303236643337643063353064386566393362336265616662313362373936203130303634340a2d2d2d20612f524541444d450a2b2b2b20622f524541444d450a4040202d31202b312c322040400a2068656c6c6f0a2b6f6e650a', NULL, '2026-11-21 05:21:23.009665+00');
INSERT INTO public.results VALUES ('bundled', '{"branch": "taskrunner/bundled", "bundle": true, "commit": "4be7e77141e048bf2c71457dd059e6a338f252bf", "deletions": 0, "insertions": 1, "base_commit": "8262a12e8d75517525b051205c7f8db3efd72620", "files_changed": 1, "repository_path": null}', '\x64696666202d2d67697420612f6e65772e74787420622f6e65772e7478740a6e65772066696c65206d6f6465203130303634340a696e64657820303030303030303030303030303030303030303030303030303030303030303030303030303030302e2e663731396566643433306435326263666338353636613433623265623635353638386433383837310a2d2d2d202f6465762f6e756c6c0a2b2b2b20622f6e65772e7478740a4040202d302c30202b312040400a2b74776f0a', '\x23207632206769742062756e646c650a3462653765373731343165303438626632633731343537646430353965366133333866323532626620726566732f68656164732f7461736b72756e6e65722f62756e646c65640a3832363261313265386437353531373532356230353132303563376638646233656664373236323020726566732f68656164732f6d61696e0a0a5041434b00000002000000059b0e789c9d8bbb0ec3200c0077bec27b176c2010a9aafa179d0d18a5ca838a90ff6fdaa57b6fbae1ae371118c3c088c507b1a550ca363292184236c2468f5862b2d9887a7193ad43a0813e45c8de39f48e5cd40e49bbe44bc8d148c9fe4cb4e2a34fb541e77d6ec7b64983ebcfef4b4dbc4c75ef37403f3a32c1060b177da2525dd767eff2d7ac1eb5cd50cbf785786c7991acde27af495de6048018789c7bcdb88d51b7a4283555c124c9c2c83425d9ccc42839c92c35c932d1c0cc20d5d42429cd22c5ccd2c8c2222d2935d5c4d2c064626ca5806b6e4149a542797e5176714162722a170007101650a302789c33343030333151c84b2dd72ba92861f82ef9fe8ac155edf327c2b29c37bd4e0debb8dc510800eb220f7134789c2b29cfe702000421016520789c030000000001c826ca7d85cd95cafeb645c82d2491100b6a4730', '2026-11-21 05:21:25.024184+00');


--
-- Data for Name: schema_migrations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.schema_migrations VALUES ('0001_registry', '2026-11-21 05:21:19.944041+00');


--
-- Data for Name: session_output; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.session_output VALUES ('s-7ff586d8e989517d9fd93335-1', 0, '\x776f726b696e670a', '2026-11-21 05:21:22.786539+00');
INSERT INTO public.session_output VALUES ('s-c2a058caa03a557c87bfc79a-1', 0, '\x62756e646c696e670a', '2026-11-21 05:21:24.860033+00');
INSERT INTO public.session_output VALUES ('s-16fc01257463512893fd1f03-1', 0, '\x6e6f206e65776c696e6520c3a9', '2026-11-21 05:21:26.438139+00');
INSERT INTO public.session_output VALUES ('s-0e2104f68e6b5da1a60acebf-1', 0, '\x697420627265616b730a', '2026-11-21 05:21:27.89828+00');
INSERT INTO public.session_output VALUES ('s-3eb6b86c5b2a57b0b679446e-1', 0, '\x626567756e0a', '2026-11-21 05:21:30.649909+00');


--
-- Data for Name: sessions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.sessions VALUES ('s-7ff586d8e989517d9fd93335-1', 'changed', 'w-7czcs42v4x', 1, 1, 'completed', 0, 'working', NULL, 8, '2026-11-21 05:21:22.708897+00', '2026-11-21 05:21:22.756874+00', '2026-11-21 05:21:22.831089+00');
INSERT INTO public.sessions VALUES ('s-c2a058caa03a557c87bfc79a-1', 'bundled', 'w-v2rp3blmo7', 1, 1, 'completed', 0, 'bundling', NULL, 9, '2026-11-21 05:21:24.800594+00', '2026-11-21 05:21:24.832604+00', '2026-11-21 05:21:24.884761+00');
INSERT INTO public.sessions VALUES ('s-16fc01257463512893fd1f03-1', 'unchanged', 'w-vt4inmy527', 1, 1, 'completed', 0, 'no newline é', NULL, 13, '2026-11-21 05:21:26.401044+00', '2026-11-21 05:21:26.414589+00', '2026-11-21 05:21:26.461779+00');
INSERT INTO public.sessions VALUES ('s-0e2104f68e6b5da1a60acebf-1', 'failed', 'w-xgpc5sr6z6', 1, 1, 'failed', 3, 'it breaks', 'exited with 3', 10, '2026-11-21 05:21:27.847872+00', '2026-11-21 05:21:27.86739+00', '2026-11-21 05:21:27.915643+00');
INSERT INTO public.sessions VALUES ('s-3eb6b86c5b2a57b0b679446e-1', 'cancelled', 'w-uckgy7dzyb', 1, 1, 'cancelled', 143, 'begun', 'cancelled', 6, '2026-11-21 05:21:30.596437+00', '2026-11-21 05:21:30.607189+00', '2026-11-21 05:21:32.082482+00');


--
-- Data for Name: tasks; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.tasks VALUES ('changed', 'completed', 'releasing', 'worktree', 'immediate', 'worktree', 'w-7czcs42v4x', 'task-changed', '{"ref": null, "prompt": "echo working; echo one >> README", "task_id": "changed", "template": {"env": {}, "name": "worktree", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "worktree", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": {"url": null, "host": "build-1", "path": "/tmp/tr-cli-xkf2bha6/cwd/repository"}, "workspace_id": "w-7czcs42v4x"}', 'de2a7f1a5071f2da2433945a3a38f01fa6a5ebaf56229cb850d1e0d71b9035af', NULL, 'build-1', '2fd2b964d702f31a6e78c2fd3a36673109b44fa4', 600, 'default', NULL, NULL, NULL, '2026-11-21 05:21:22.365201+00', '2026-11-21 05:21:22.417104+00', '2026-11-21 05:21:23.083232+00');
INSERT INTO public.tasks VALUES ('unchanged', 'completed', 'releasing', 'local', 'immediate', 'local', 'w-vt4inmy527', 'task-unchanged', '{"ref": null, "prompt": "printf ''no newline \\303\\251''", "task_id": "unchanged", "template": {"env": {}, "name": "local", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-vt4inmy527"}', 'd26cc7a8c34efa564d245f4aa9550cbaecc8617b49ed90c83508c27333283efe', NULL, 'build-1', NULL, 600, 'default', NULL, NULL, NULL, '2026-11-21 05:21:26.092718+00', '2026-11-21 05:21:26.119426+00', '2026-11-21 05:21:26.577021+00');
INSERT INTO public.tasks VALUES ('bundled', 'completed', 'releasing', 'local', 'immediate', 'local', 'w-v2rp3blmo7', 'task-bundled', '{"ref": null, "prompt": "echo bundling; echo two > new.txt", "task_id": "bundled", "template": {"env": {}, "name": "local", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-v2rp3blmo7"}', '5a8dcbfb5d3cb027d283f6f99a5a58e6ec9bdc99985442c9004bc44116116350', NULL, 'build-1', NULL, 600, 'default', NULL, NULL, NULL, '2026-11-21 05:21:24.322914+00', '2026-11-21 05:21:24.398768+00', '2026-11-21 05:21:25.077373+00');
INSERT INTO public.tasks VALUES ('unready', 'failed', 'releasing', 'local', 'callback', 'unready', 'w-itbrfqa2zv', 'task-unready', '{"ref": null, "prompt": "true", "task_id": "unready", "template": {"env": {}, "name": "unready", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": ["echo no compiler here; exit 4"], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-itbrfqa2zv"}', '48a55cac489f9293c6e4074ed29972302bf13c05c9c843a2064c84bcb7565666', NULL, 'build-1', NULL, 600, 'default', 'setup[0] exited with 4: echo no compiler here; exit 4', 'WorkspaceProvisionFailed', '{"error": "setup[0] exited with 4: echo no compiler here; exit 4", "detail": "no compiler here\n", "source": "bootstrap", "attempt": 1, "backend": "local", "timeout_secs": 600, "workspace_id": "w-itbrfqa2zv"}', '2026-11-21 05:21:28.932135+00', '2026-11-21 05:21:28.960906+00', '2026-11-21 05:21:29.288983+00');
INSERT INTO public.tasks VALUES ('cancelled', 'cancelled', 'releasing', 'local', 'immediate', 'local', 'w-uckgy7dzyb', 'task-cancelled', '{"ref": null, "prompt": "echo begun; read line < /tmp/tr-cli-xkf2bha6/cwd/gate", "task_id": "cancelled", "template": {"env": {}, "name": "local", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-uckgy7dzyb"}', '2295fedc6c512c06d1e6b561bf6839f6917310a48076d1db6617f78199a67576', NULL, 'build-1', NULL, 600, 'default', 'the task was cancelled', NULL, NULL, '2026-11-21 05:21:30.256843+00', '2026-11-21 05:21:30.286197+00', '2026-11-21 05:21:32.188219+00');
INSERT INTO public.tasks VALUES ('failed', 'failed', 'releasing', 'local', 'immediate', 'local', 'w-xgpc5sr6z6', 'task-failed', '{"ref": null, "prompt": "echo it breaks >&2; exit 3", "task_id": "failed", "template": {"env": {}, "name": "local", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-xgpc5sr6z6"}', 'e7be42e425b1d5a96119e6c27d0713ba8da4bd099892b28e59bebe6bdea45e69', NULL, 'build-1', NULL, 600, 'default', 'the session failed: exited with 3', 'SessionFailed', NULL, '2026-11-21 05:21:27.489446+00', '2026-11-21 05:21:27.586171+00', '2026-11-21 05:21:28.019904+00');
INSERT INTO public.tasks VALUES ('queued', 'queued', NULL, 'local', 'immediate', 'local', 'w-queued', 'task-queued', '{"ref": null, "prompt": "echo later", "task_id": "queued", "template": {"env": {}, "name": "local", "agent": {"kind": "command", "command": ["/bin/sh", "-c", "{prompt}"]}, "setup": [], "backend": "local", "runtime": null, "readiness": null, "required_env": [], "runtime_config": {"provision_timeout_seconds": null}, "session_timeout": "PT2H", "heartbeat_interval": "PT15S"}, "repository": null, "workspace_id": "w-queued"}', 'of the request', 'a-key', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-11-21 05:21:32.355504+00', NULL, NULL);


--
-- Data for Name: workspaces; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.workspaces VALUES ('w-itbrfqa2zv', 'unready', 'local', 'removed', 1, 'task-unready', 'build-1', 'tr-w-itbrfqa2zv-1', 'http://127.0.0.1:51661', 'failed', 'degraded', 'setup[0] exited with 4: echo no compiler here; exit 4', '{"metrics": null, "pending": 3, "sessions": []}', '2026-11-21 05:21:29.137064+00', NULL, '2026-11-21 05:21:28.977026+00');
INSERT INTO public.workspaces VALUES ('w-7czcs42v4x', 'changed', 'worktree', 'removed', 1, 'task-changed', 'build-1', 'tr-w-7czcs42v4x-1', 'http://127.0.0.1:39241', 'ready', 'ready', NULL, '{"metrics": null, "pending": 1, "sessions": []}', '2026-11-21 05:21:22.71366+00', NULL, '2026-11-21 05:21:22.471479+00');
INSERT INTO public.workspaces VALUES ('w-uckgy7dzyb', 'cancelled', 'local', 'removed', 1, 'task-cancelled', 'build-1', 'tr-w-uckgy7dzyb-1', 'http://127.0.0.1:59117', 'ready', 'ready', NULL, '{"metrics": null, "pending": 0, "sessions": []}', '2026-11-21 05:21:30.59853+00', NULL, '2026-11-21 05:21:30.321529+00');
INSERT INTO public.workspaces VALUES ('w-v2rp3blmo7', 'bundled', 'local', 'removed', 1, 'task-bundled', 'build-1', 'tr-w-v2rp3blmo7-1', 'http://127.0.0.1:55381', 'ready', 'ready', NULL, '{"metrics": null, "pending": 0, "sessions": []}', '2026-11-21 05:21:24.807935+00', NULL, '2026-11-21 05:21:24.436648+00');
INSERT INTO public.workspaces VALUES ('w-vt4inmy527', 'unchanged', 'local', 'removed', 1, 'task-unchanged', 'build-1', 'tr-w-vt4inmy527-1', 'http://127.0.0.1:47949', 'ready', 'ready', NULL, '{"metrics": null, "pending": 0, "sessions": []}', '2026-11-21 05:21:26.410067+00', NULL, '2026-11-21 05:21:26.135312+00');
INSERT INTO public.workspaces VALUES ('w-xgpc5sr6z6', 'failed', 'local', 'removed', 1, 'task-failed', 'build-1', 'tr-w-xgpc5sr6z6-1', 'http://127.0.0.1:49865', 'ready', 'ready', NULL, '{"metrics": null, "pending": 0, "sessions": []}', '2026-11-21 05:21:27.856809+00', NULL, '2026-11-21 05:21:27.604416+00');


--
-- Name: boot_log_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.boot_log_id_seq', 9, true);


--
-- Name: events_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.events_id_seq', 108, true);


--
-- Name: kept_callbacks_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.kept_callbacks_id_seq', 1, true);


--
-- Name: api_tokens api_tokens_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_tokens
    ADD CONSTRAINT api_tokens_pkey PRIMARY KEY (name);


--
-- Name: attempts attempts_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (workspace_id, attempt);


--
-- Name: boot_log boot_log_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.boot_log
    ADD CONSTRAINT boot_log_pkey PRIMARY KEY (id);


--
-- Name: boot_log boot_log_workspace_id_attempt_step_status_timestamp_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.boot_log
    ADD CONSTRAINT boot_log_workspace_id_attempt_step_status_timestamp_key UNIQUE (workspace_id, attempt, step, status, "timestamp");


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);


--
-- Name: kept_callbacks kept_callbacks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kept_callbacks
    ADD CONSTRAINT kept_callbacks_pkey PRIMARY KEY (id);


--
-- Name: results results_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.results
    ADD CONSTRAINT results_pkey PRIMARY KEY (task_id);


--
-- Name: schema_migrations schema_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (name);


--
-- Name: session_output session_output_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_output
    ADD CONSTRAINT session_output_pkey PRIMARY KEY (session_id, start);


--
-- Name: sessions sessions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);


--
-- Name: sessions sessions_task_id_attempt_turn_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_task_id_attempt_turn_key UNIQUE (task_id, attempt, turn);


--
-- Name: tasks tasks_idempotency_key_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_idempotency_key_key UNIQUE (idempotency_key);


--
-- Name: tasks tasks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (id);


--
-- Name: workspaces workspaces_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workspaces
    ADD CONSTRAINT workspaces_pkey PRIMARY KEY (id);


--
-- Name: api_tokens_by_hash; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX api_tokens_by_hash ON public.api_tokens USING btree (sha256);


--
-- Name: events_of_task; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_of_task ON public.events USING btree (task_id, id);


--
-- Name: events_one_failure_an_attempt; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX events_one_failure_an_attempt ON public.events USING btree (workspace_id, attempt) WHERE (kind = 'WORKSPACE_PROVISION_FAILED'::public.event_kind);


--
-- Name: kept_callbacks_once; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX kept_callbacks_once ON public.kept_callbacks USING btree (workspace_id, attempt, signal, COALESCE(session_id, ''::text));


--
-- Name: kept_callbacks_undelivered; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX kept_callbacks_undelivered ON public.kept_callbacks USING btree (id) WHERE (delivered_at IS NULL);


--
-- Name: tasks_newest; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX tasks_newest ON public.tasks USING btree (created_at DESC, id DESC);


--
-- Name: tasks_newest_by_status; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX tasks_newest_by_status ON public.tasks USING btree (status, created_at DESC, id DESC);


--
-- Name: workspaces_newest; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workspaces_newest ON public.workspaces USING btree (created_at DESC, id DESC);


--
-- Name: workspaces_of_task; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workspaces_of_task ON public.workspaces USING btree (task_id);


--
-- Name: events notify_of_event; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER notify_of_event AFTER INSERT ON public.events FOR EACH ROW EXECUTE FUNCTION public.notify_of_event();


--
-- Name: session_output notify_of_output; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER notify_of_output AFTER INSERT ON public.session_output FOR EACH ROW EXECUTE FUNCTION public.notify_of_output();


--
-- Name: attempts attempts_task_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_task_id_fkey FOREIGN KEY (task_id) REFERENCES public.tasks(id);


--
-- Name: attempts attempts_workspace_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_workspace_id_fkey FOREIGN KEY (workspace_id) REFERENCES public.workspaces(id);


--
-- Name: boot_log boot_log_workspace_id_attempt_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.boot_log
    ADD CONSTRAINT boot_log_workspace_id_attempt_fkey FOREIGN KEY (workspace_id, attempt) REFERENCES public.attempts(workspace_id, attempt);


--
-- Name: events events_task_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_task_id_fkey FOREIGN KEY (task_id) REFERENCES public.tasks(id);


--
-- Name: results results_task_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.results
    ADD CONSTRAINT results_task_id_fkey FOREIGN KEY (task_id) REFERENCES public.tasks(id);


--
-- Name: session_output session_output_session_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_output
    ADD CONSTRAINT session_output_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id);


--
-- Name: sessions sessions_task_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_task_id_fkey FOREIGN KEY (task_id) REFERENCES public.tasks(id);


--
-- Name: sessions sessions_workspace_id_attempt_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_workspace_id_attempt_fkey FOREIGN KEY (workspace_id, attempt) REFERENCES public.attempts(workspace_id, attempt);


--
-- Name: workspaces workspaces_task_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workspaces
    ADD CONSTRAINT workspaces_task_id_fkey FOREIGN KEY (task_id) REFERENCES public.tasks(id);


--
-- PostgreSQL database dump complete
--


