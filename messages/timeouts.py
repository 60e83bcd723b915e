"""The provision timeout: which of four rules sets it."""

import difflib
import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

from messages.statuses import Readiness
from messages.templates import AGENT_PRESETS, Template

PROVISION_TIMEOUT_VARIABLE = "PROVISION_TIMEOUT_SECONDS"
RUNTIME_DEFAULTS = {"hermes": 1800}
DEFAULT_SECONDS = 600
LONGEST_SECONDS = 7 * 86400
PROBE_DEFAULT_SECONDS = 120

_log = logging.getLogger(__name__)


class ProvisionTimeout(NamedTuple):
    """Seconds that an attempt may wait for ready, and which rule set them."""

    seconds: int
    rule: str


def resolve_provision_timeout(template: Template, environ: Mapping[str, str]) -> ProvisionTimeout:
    """Return the effective timeout: environment, then template, then runtime, then default.

    A value in ``environ`` that is no positive integer, or more than a week, is ignored with a warning. Resolved once an
    attempt, by the worker's preflight, and recorded; everybody else reads the record.
    """
    if (text := environ.get(PROVISION_TIMEOUT_VARIABLE)) is not None:
        if re.fullmatch(r"\s*0*[1-9][0-9]{0,5}\s*", text, re.ASCII) and int(text) <= LONGEST_SECONDS:
            return ProvisionTimeout(int(text), f"environment {PROVISION_TIMEOUT_VARIABLE}")
        _log.warning("%s=%.40r is no number of seconds up to a week: ignored", PROVISION_TIMEOUT_VARIABLE, text)
    if (seconds := template.runtime_config.provision_timeout_seconds) is not None:
        return ProvisionTimeout(seconds, f"template {template.name}")
    if template.runtime in RUNTIME_DEFAULTS:
        return ProvisionTimeout(RUNTIME_DEFAULTS[template.runtime], f"runtime {template.runtime}")
    if template.effective_readiness is Readiness.PROBE:
        return ProvisionTimeout(PROBE_DEFAULT_SECONDS, "default for probe readiness")
    return ProvisionTimeout(DEFAULT_SECONDS, "default")


def runtime_warning(template: Template) -> str | None:
    """Return what is doubtful about the template's runtime: one that is not known sets no timeout, as a typo would.

    None where the template sets its timeout itself, and for the preset agents, which are known to need no longer one.
    """
    runtime = template.runtime
    if runtime is None or runtime in {*RUNTIME_DEFAULTS, *AGENT_PRESETS}:
        return None
    if template.runtime_config.provision_timeout_seconds is not None:
        return None
    near = difflib.get_close_matches(runtime, {*RUNTIME_DEFAULTS, *AGENT_PRESETS}, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "set runtime_config.provision_timeout_seconds"
    return f"runtime {runtime!r} is not known and sets no default timeout; {hint}"
