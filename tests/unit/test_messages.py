"""The shared vocabulary: ids, durations, templates, the provision timeout, tokens and keys."""

import json
import logging
import shutil
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import agent
from cli.main import VERSION
from messages import names
from messages.callbacks import LOG_TAIL_BYTES, BootLogBody, FinishedBody, HeartbeatBody, OutputBody, ReadyBody, log_tail
from messages.durations import Duration, format_duration, parse_duration
from messages.keys import Keyring, KeysError, create_keys, load_keys
from messages.names import HOST_PATTERN, ID_PATTERN
from messages.settings import Settings
from messages.statuses import (
    SESSION_TRANSITIONS,
    TASK_TRANSITIONS,
    WORKSPACE_TRANSITIONS,
    Readiness,
    SessionStatus,
    TaskStatus,
    WorkspaceStatus,
)
from messages.tasks import TaskInput, TaskRequest
from messages.templates import (
    AGENT_PRESETS,
    INSTALL_COMMANDS,
    CommandAgent,
    HarnessAgent,
    Template,
    agent_preset,
    how_to_install,
)
from messages.timeouts import resolve_provision_timeout, runtime_warning
from messages.tokens import InvalidToken, mint_callback_token, verify_callback_token
from messages.validation import explain, first_violation


@pytest.mark.parametrize("good", ["a", "0", "a-b", "x" * 40])
def test_ids_that_are_safe_everywhere(good: str) -> None:
    assert names.is_id(good)
    assert len(names.compute_name(good, 9999)) <= 63


@pytest.mark.parametrize("bad", ["", "-a", "A", "../x", "a/b", "a.b", "a\n", "x" * 41, "ä", "a b"])
def test_ids_that_are_refused(bad: str) -> None:
    """S13"""
    assert not names.is_id(bad)


def test_a_session_id_is_known_to_belong_to_its_attempt_without_a_look_up() -> None:
    """S45"""
    first, second = names.session_id("w", 1, 1), names.session_id("w", 1, 2)
    assert first != second
    assert names.is_id(first)
    assert names.is_session_of(first, "w", 1)
    assert names.is_session_of(second, "w", 1)
    for other in (names.session_id("w", 2, 1), names.session_id("v", 1, 1), f"{first[:-1]}2", "s-nope", f"{first}\n"):
        assert not names.is_session_of(other, "w", 1)


def test_repeats_of_a_callback_share_a_request_id_and_nothing_else_does() -> None:
    """S03"""
    keys = [("w", 1, "workspace_ready", ""), ("w", 2, "workspace_ready", ""), ("w", 1, "session_finished", "s-1")]
    ids = [names.callback_request_id(*key) for key in keys]
    assert len(set(ids)) == len(ids)
    assert ids == [names.callback_request_id(*key) for key in keys]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("500ms", 0.5), ("1d", 86400), (" 15 m ", 900)]
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["1d", "1h30m", "45s", "2s", "500ms", "1s500ms", "1h1ms", "0s"])
def test_a_duration_is_shown_as_it_was_written(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


def test_a_duration_is_shown_to_the_millisecond() -> None:
    assert format_duration(timedelta(seconds=1.9996)) == "2s"
    assert format_duration(timedelta(microseconds=1499)) == "1ms"


@pytest.mark.parametrize("text", ["", "2", "2x", "h", "-1s", "1.5h", "9999d", "9" * 29 + "d", "1" * 40 + "s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer than a year"):
        parse_duration(text)


def test_a_duration_survives_json() -> None:
    adapter: TypeAdapter[timedelta] = TypeAdapter(Duration)
    assert adapter.validate_json(adapter.dump_json(timedelta(minutes=90))) == timedelta(minutes=90)
    assert format_duration(timedelta(minutes=90)) == "1h30m"
    with pytest.raises(ValidationError, match="no unit"):
        adapter.validate_python(120)


def template(**fields: Any) -> Template:
    return Template.model_validate({"name": "t", "backend": "local"} | fields)


@pytest.mark.parametrize(
    ("runtime", "own", "warning"),
    [
        (None, None, None),
        ("hermes", None, None),
        ("claude-code", None, None),
        ("hermez", None, "runtime 'hermez' is not known and sets no default timeout; did you mean 'hermes'?"),
        ("hermez", 60, None),
        ("zork", None, "'zork' is not known and sets no default timeout; set runtime_config.provision_timeout_seconds"),
    ],
)
def test_a_runtime_that_sets_no_timeout_is_told(runtime: str | None, own: int | None, warning: str | None) -> None:
    told = runtime_warning(template(runtime=runtime, runtime_config={"provision_timeout_seconds": own}))
    assert (told is None) == (warning is None)
    assert (warning or "") in (told or "")


@pytest.mark.parametrize(
    ("environment", "own", "runtime", "seconds", "rule"),
    [
        ("77", 88, "hermes", 77, "environment PROVISION_TIMEOUT_SECONDS"),
        (None, 88, "hermes", 88, "template t"),
        (None, None, "hermes", 1800, "runtime hermes"),
        (None, None, "claude-code", 600, "default"),
        (None, None, None, 600, "default"),
        ("0", 88, None, 88, "template t"),
        ("-5", None, "hermes", 1800, "runtime hermes"),
        ("soon", None, None, 600, "default"),
    ],
)
def test_which_rule_sets_the_provision_timeout(
    environment: str | None, own: int | None, runtime: str | None, seconds: int, rule: str
) -> None:
    """S16"""
    environ = {} if environment is None else {"PROVISION_TIMEOUT_SECONDS": environment}
    given = template(runtime=runtime, runtime_config={"provision_timeout_seconds": own})
    assert resolve_provision_timeout(given, environ) == (seconds, rule)


@pytest.mark.parametrize("bad", ["0", "-5", "soon", "1.5", "604801", "9" * 5000, "\u0661", ""])
def test_a_bad_provision_timeout_in_the_environment_is_ignored_with_a_warning(
    bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S16"""
    with caplog.at_level(logging.WARNING):
        assert resolve_provision_timeout(template(), {"PROVISION_TIMEOUT_SECONDS": bad}).seconds == 600
    assert "PROVISION_TIMEOUT_SECONDS" in caplog.text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"agnt": "shell"}, "unknown key 'agnt'; did you mean 'agent'?"),
        ({"agent": "shel"}, "unknown agent 'shel'; known: shell"),
        ({"agent": {"kind": "command", "command": ["ls"]}}, "{prompt}"),
        ({"agent": {"kind": "harnesd", "command": ["ls"]}}, "'command', 'harnessd'"),
        ({"agent": {"kind": "harnessd"}}, "needs the command that starts it"),
        ({"agent": {"kind": "harnessd", "command": ["x"], "prot": 1}}, "did you mean 'port'?"),
        ({"agent": {"kind": "harnessd", "command": ["x"], "token_env": "T"}}, "has to be one of required_env"),
        ({"agent": {"kind": "harnessd", "command": ["x"]}, "readiness": "immediate"}, "readiness: callback or probe"),
        ({"backend": "vm"}, "not available in this release; use one of: local, worktree"),
        ({"setup": ["true"], "readiness": "immediate"}, "setup needs readiness: callback"),
        ({"session_timeout": "0s"}, "session_timeout must be positive"),
        ({"session_timeout": 5}, "no unit"),
        ({"session_timeout": "P366D"}, "longer than a year"),
        ({"heartbeat_interval": "P99999999D"}, "longer than a year"),
        ({"runtime_config": {"provision_timeout": 5}}, "did you mean 'provision_timeout_seconds'?"),
    ],
)
def test_a_template_that_cannot_be_is_refused_with_what_to_do(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        template(**fields)
    assert text in str(refused.value)


def test_a_template_is_immediate_unless_something_has_to_run_first() -> None:
    assert template().effective_readiness is Readiness.IMMEDIATE
    assert template(setup=["true"]).effective_readiness is Readiness.CALLBACK
    assert template(readiness="callback").effective_readiness is Readiness.CALLBACK


def test_the_prompt_is_one_argument_and_never_read_by_a_shell() -> None:
    agent = template(agent={"kind": "command", "command": ["run", "--task={prompt}", "x"]}).agent
    assert agent.argv("a; rm -rf {x} '\"") == ["run", "--task=a; rm -rf {x} '\"", "x"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "  "},
        {"prompt": "a\0b"},
        {"prompt": "x" * 100_001},
        {"prompt": "x", "id": "../x"},
        {"prompt": "x", "ref": "-x"},
        {"prompt": "x", "repository": {}},
        {"prompt": "x", "repository": {"path": "/x", "url": "https://x"}},
        {"prompt": "x", "repository": {"path": "relative"}},
        {"prompt": "x", "unknown": 1},
        {"prompt": "x", "timeout": "P99999999D"},
        {"prompt": "x", "timeout": "9999999999d"},
        {"prompt": "x", "timeout": timedelta(seconds=-1)},
    ],
)
def test_requests_that_are_refused(fields: dict[str, Any]) -> None:
    """S36"""
    with pytest.raises(ValidationError):
        TaskRequest.model_validate(fields)


def test_callbacks_are_read_in_both_spellings() -> None:
    """S36"""
    for body in ({"agent_version": "1"}, {"agentVersion": "1"}, {"agentVersion": "1", "somethingNew": []}):
        assert ReadyBody.model_validate(body).agent_version == "1"


def test_log_tails_hold_at_most_8_kib_and_end_at_a_character() -> None:
    """S39"""
    tail = log_tail("ä" * 10_000 + "\0end")
    assert len(tail.encode()) <= LOG_TAIL_BYTES
    assert tail.endswith("äend")


def test_final_statuses_have_no_way_out_but_a_retry() -> None:
    """S07"""
    assert WORKSPACE_TRANSITIONS[WorkspaceStatus.REMOVED] == frozenset()
    assert set(TASK_TRANSITIONS) == set(TaskStatus)
    assert set(SESSION_TRANSITIONS) == set(SessionStatus)
    assert all(not SESSION_TRANSITIONS[status] for status in SessionStatus if status.is_final)
    assert all(TASK_TRANSITIONS[status] <= {TaskStatus.QUEUED} for status in TaskStatus if status.is_final)


@pytest.mark.parametrize("name", sorted(AGENT_PRESETS))
def test_a_preset_hands_the_whole_prompt_to_its_program_as_one_argument_that_is_no_option(name: str) -> None:
    prompt = '--help\n"$(rm -rf .)"\' {prompt} -'
    argv = agent_preset(name).argv(prompt)
    assert argv[-1].endswith(prompt)
    assert "".join(argv).count(prompt) == 1
    assert argv[-1] == f"--prompt={prompt}" or argv[-2] == "--"


@pytest.mark.parametrize("shell", ["sh", *filter(shutil.which, ["dash", "bash", "ksh", "zsh"])])
def test_a_script_that_begins_with_a_dash_is_no_option_of_any_shell(shell: str) -> None:
    """An image may have any of them at /bin/sh."""
    _, *options = agent_preset("shell").argv('-x || echo "it goes on"')
    ran = subprocess.run([shell, *options], capture_output=True, text=True, check=True)
    assert ran.stdout == "it goes on\n"
    assert "not found" in ran.stderr


def test_every_preset_but_the_shell_says_how_its_program_is_installed() -> None:
    programs = {agent_preset(name).command[0] for name in AGENT_PRESETS if name != "shell"}
    assert programs == set(INSTALL_COMMANDS)
    assert "npm install -g @openai/codex" in how_to_install("codex")
    assert how_to_install("my-agent").startswith("install it where the worker runs")


def _token(keys: Keyring, issued_at: datetime) -> str:
    return mint_callback_token(keys, workspace_id="w", attempt=1, workflow_id="task-t", issued_at=issued_at)


def test_a_token_is_the_same_whenever_it_is_made(keys: Keyring) -> None:
    """S11"""
    created = datetime.now(UTC)
    assert _token(keys, created) == _token(keys, created)
    assert verify_callback_token(keys, _token(keys, created)).wf == "task-t"


@pytest.mark.parametrize("skew", [timedelta(seconds=5), timedelta(minutes=5)])
def test_a_clock_behind_the_issuers_turns_no_workspace_away(keys: Keyring, skew: timedelta) -> None:
    """S11"""
    assert verify_callback_token(keys, _token(keys, datetime.now(UTC) + skew)).sub == "w"


def test_a_token_dies_after_a_day_and_is_renewed_from_half_of_it(keys: Keyring) -> None:
    """S35"""
    now = datetime.now(UTC)
    with pytest.raises(InvalidToken):
        verify_callback_token(keys, _token(keys, now - timedelta(hours=24, seconds=1)))
    assert verify_callback_token(keys, _token(keys, now - timedelta(hours=13))).past_half_life(now)
    assert not verify_callback_token(keys, _token(keys, now - timedelta(hours=11))).past_half_life(now)


def test_keys_are_made_once_readable_by_their_owner_alone_and_never_shown(tmp_path: Path) -> None:
    """S37"""
    path = tmp_path / "keys.json"
    first, second = create_keys(path), create_keys(path)
    assert first == second
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(first.secret) not in repr(first)
    path.chmod(0o644)
    with pytest.raises(KeysError, match="chmod 600"):
        load_keys(path)
    path.chmod(0o600)
    path.write_text('{"secret": "hidden"}')
    with pytest.raises(KeysError) as broken:
        load_keys(path)
    assert "hidden" not in str(broken.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeysError, match="broken"):
        load_keys(path)


def test_agents_tokens_differ_by_workspace_and_attempt(keys: Keyring) -> None:
    tokens = {keys.agent_token(workspace, attempt) for workspace in ("a", "b") for attempt in (1, 2)}
    assert len(tokens) == 4
    assert all(len(token) == 64 for token in tokens)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "prompt: is missing"),
        ({"prompt": ""}, "prompt: is blank"),
        ({"prompt": 1}, "prompt: has to be text"),
        ({"prompt": "x", "id": "Ä"}, "id: has to be at most 40 small letters, digits and hyphens, not a hyphen first"),
        ({"prompt": "x", "backend": "nope"}, "backend: has to be one of: local, worktree"),
        ({"prompt": "x", "wat": 1}, "wat: is not known here"),
        ({"prompt": "x", "timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"prompt": "x", "ref": "a b"}, "ref: has to be a branch, a tag or a commit"),
        ({"prompt": "x", "repository": "y"}, "repository: has to be a mapping"),
        ({"prompt": "x", "repository": {"path": "y"}}, "repository.path: has to be an absolute path"),
    ],
)
def test_what_is_wrong_is_told_in_words_for_people(body: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskRequest.model_validate(body)
    assert str(first_violation(caught.value)).startswith(told)


def test_all_parts_carry_the_release_that_is_built() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {VERSION, agent.__version__} == {project["version"]}


def test_a_harness_is_waited_for_and_told_where_to_listen() -> None:
    given = template(agent={"kind": "harnessd", "command": ["harnessd"], "env": {"A": "{port}"}})
    assert given.effective_readiness is Readiness.CALLBACK
    assert isinstance(given.agent, HarnessAgent)
    assert given.agent.full_env == {"HARNESS_ADDR": "127.0.0.1:{port}", "A": "{port}"}
    assert Template.model_validate_json(given.model_dump_json()) == given
    own = template(agent={"kind": "harnessd", "command": ["x"], "env": {"HARNESS_ADDR": "0.0.0.0:{port}"}}).agent
    assert isinstance(own, HarnessAgent)
    assert own.full_env == {"HARNESS_ADDR": "0.0.0.0:{port}"}


def test_an_agent_without_a_kind_is_a_command() -> None:
    assert template(agent={"command": ["run", "{prompt}"]}).agent == CommandAgent(command=("run", "{prompt}"))


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ({"kind": "command", "command": []}, "agent.command: is empty"),
        ({"kind": "harnessd", "port": "x"}, "agent.port: has to be a whole number"),
    ],
)
def test_a_field_is_named_as_it_stands_in_what_was_sent(agent: object, told: str) -> None:
    """Without the mark that pydantic puts between for the kind of the agent."""
    with pytest.raises(ValidationError) as refused:
        template(agent=agent)
    assert str(first_violation(refused.value)) == told


@pytest.mark.parametrize(
    ("container", "told"),
    [
        ({"image": "-x"}, "container.image: has to be the name of an image: without spaces, and no hyphen first"),
        ({"image": "x", "memory": "4x"}, "container.memory: has to be a number of bytes, or as 512m or 4g"),
        ({"image": "x", "network": "-"}, "container.network: has to be letters, digits, dots, underscores and hyphens"),
        ({"image": "x", "pids": "9" * 5000}, "container.pids: is too large a number"),
    ],
)
def test_what_is_wrong_with_a_container_is_told_in_words(container: object, told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        template(backend="container", container=container)
    assert str(first_violation(refused.value)).startswith(told)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (FinishedBody, "status: has to be one of: completed, failed, interrupted, cancelled"),
        (BootLogBody, "timestamp: has to be a time, for example 2026-01-31T13:04:00Z"),
    ],
)
def test_what_is_wrong_with_a_callback_is_told_without_words_of_python(body: type[BaseModel], told: str) -> None:
    sent = {"step": "setup", "message": "x", "timestamp": "soon"}
    with pytest.raises(ValidationError) as refused:
        body.model_validate({"status": "done" if body is FinishedBody else "started", **sent})
    assert str(first_violation(refused.value)) == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"runtime_config": {"provision_timeout_seconds": True}},
            "runtime_config.provision_timeout_seconds: has to be a",
        ),
        (
            {"backend": "container", "container": {"image": "x", "pids": True}},
            "container.pids: has to be a whole number",
        ),
        ({"backend": "container", "container": {"image": "x", "cpus": True}}, "container.cpus: has to be a number"),
        (
            {"backend": "container", "container": {"image": "x", "port": True}},
            "container.port: has to be a whole number",
        ),
        ({"agent": {"kind": "harnessd", "command": ["x"], "port": True}}, "agent.port: has to be a whole number"),
    ],
)
def test_true_is_no_number_in_a_template(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        template(**fields)
    assert str(first_violation(refused.value)).startswith(told)


@pytest.mark.parametrize(
    ("body", "fields", "told"),
    [
        (OutputBody, {"offset": True, "chunks": []}, "offset: has to be a whole number"),
        (HeartbeatBody, {"state": "ready", "pending": False}, "pending: has to be a whole number"),
        (FinishedBody, {"status": "failed", "exitCode": True}, "exitCode: has to be a whole number"),
    ],
)
def test_true_is_no_number_in_a_callback(body: type[BaseModel], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        body.model_validate(fields)
    assert str(first_violation(refused.value)) == told


def test_a_task_that_was_stored_with_what_is_refused_today_is_still_read() -> None:
    """Templates of 0.1.0 could say it."""
    own = {"setup": [""], "env": {"TASKRUNNER_X": "y"}}
    stored = {"task_id": "t", "workspace_id": "w", "prompt": "x", "template": {"name": "t", "backend": "local", **own}}
    read = TaskInput.model_validate_json(json.dumps(stored)).template
    assert (read.setup, read.env) == (("",), {"TASKRUNNER_X": "y"})
    with pytest.raises(ValueError, match="TASKRUNNER_X is ours"):
        read.check_as_written()


def test_no_pattern_is_shown_to_whom_it_refuses() -> None:
    schemas = TypeAdapter(tuple[TaskRequest, Template, OutputBody, HeartbeatBody, Settings]).json_schema()
    patterns = _patterns_in(schemas)
    assert ID_PATTERN in patterns
    assert HOST_PATTERN in patterns
    for pattern in patterns:
        assert "has to be" in explain({"type": "string_pattern_mismatch", "ctx": {"pattern": pattern}}), pattern


def _patterns_in(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return {pattern for part in schema for pattern in _patterns_in(part)}
    if not isinstance(schema, dict):
        return set()
    # The names of a mapping's keys are patterns too, as those of properties.
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    return own | set(schema.get("patternProperties", ())) | _patterns_in(list(schema.values()))


def test_an_unknown_kind_of_agent_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValidationError) as refused:
        template(agent={"kind": "harnesd", "command": ["ls"]})
    assert str(first_violation(refused.value)) == "agent: kind has to be one of: command, harnessd"
