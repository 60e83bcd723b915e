"""The provision timeout: which of four rules sets it."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from messages.statuses import Readiness
from messages.templates import Template

PROVISION_TIMEOUT_VARIABLE = "PROVISION_TIMEOUT_SECONDS"
RUNTIME_DEFAULTS = {"hermes": 1800}
DEFAULT_SECONDS = 600
PROBE_DEFAULT_SECONDS = 120

_log = logging.getLogger(__name__)


class ProvisionTimeout(NamedTuple):
    """Seconds that an attempt may wait for ready, and which rule set them."""

    seconds: int
    rule: str


def resolve_provision_timeout(template: Template, environ: Mapping[str, str]) -> ProvisionTimeout:
    """Return the effective timeout: environment, then template, then runtime, then default.

    A value in ``environ`` that is no positive integer is ignored with a warning. Resolved once an attempt, by the
    worker's preflight, and recorded; everybody else reads the record.
    """
    if (text := environ.get(PROVISION_TIMEOUT_VARIABLE)) is not None:
        if text.strip().isascii() and text.strip().isdecimal() and int(text) > 0:
            return ProvisionTimeout(int(text), f"environment {PROVISION_TIMEOUT_VARIABLE}")
        _log.warning("%s=%r is no positive integer: ignored", PROVISION_TIMEOUT_VARIABLE, text)
    if (seconds := template.runtime_config.provision_timeout_seconds) is not None:
        return ProvisionTimeout(seconds, f"template {template.name}")
    if template.runtime in RUNTIME_DEFAULTS:
        return ProvisionTimeout(RUNTIME_DEFAULTS[template.runtime], f"runtime {template.runtime}")
    if template.effective_readiness is Readiness.PROBE:
        return ProvisionTimeout(PROBE_DEFAULT_SECONDS, "default for probe readiness")
    return ProvisionTimeout(DEFAULT_SECONDS, "default")
