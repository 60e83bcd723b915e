"""Telling what was found."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from cli import render
from cli.doctor.check import Check, Status
from cli.doctor.examination import all_is_well, examine

_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.BROKEN: "red"}


def report(*, docker: bool, as_json: bool) -> int:
    """Make the checks, print them, and return the exit code."""
    checks = examine(docker=docker)
    click.echo(as_object(checks) if as_json else page(checks))
    return 0 if all_is_well(checks) else 1


def as_object(checks: Sequence[Check]) -> str:
    """Return ``{"ok", "checks": [{"name", "status", "found", "problem"?, "mend"?}]}`` as JSON."""
    described = [{name: value for name, value in asdict(check).items() if value is not None} for check in checks]
    return json.dumps({"ok": all_is_well(checks), "checks": described})


def page(checks: Sequence[Check]) -> str:
    """Return one line a check, and a last one that says how it is altogether."""
    rows = [
        (click.style(check.status.value, fg=_COLOURS.get(check.status)), check.name, _text(check)) for check in checks
    ]
    return f"{render.table(('STATUS', 'CHECK', 'FOUND'), rows)}\n\n{_summary(checks)}"


def _text(check: Check) -> str:
    parts = [check.found, check.problem, f"mend it: {check.mend}" if check.mend else None]
    return render.printable("; ".join(part for part in parts if part))


def _summary(checks: Sequence[Check]) -> str:
    named = {status: [check.name for check in checks if check.status is status] for status in Status}
    bad, doubtful = named[Status.BROKEN], named[Status.WARNING]
    head = f"Broken: {', '.join(bad)}." if bad else "Everything that is needed works."
    return f"{head} Warnings: {', '.join(doubtful)}." if doubtful else head
