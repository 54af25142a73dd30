"""What a check finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

__all__ = ["OK", "PROBLEM", "WARNING", "Finding", "as_values", "show"]

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"
_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "red"}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: `OK`, `WARNING` (it may cost time, or matters only elsewhere) or `PROBLEM`
            (training over ranks will fail, or not be what it seems).
        text: what was found.
        fix: what to do about it; empty if nothing.
    """

    check: str
    status: str
    text: str
    fix: str = ""


def show(findings: Sequence[Finding], color: bool | None = None) -> None:
    """Print one line for each, and the fix below it; in colour if a terminal reads it."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        status = click.style(f"{finding.status:7}", fg=_COLOURS[finding.status])
        click.echo(f"{status}  {finding.check:{width}}  {finding.text}", color=color)
        if finding.fix:
            click.echo(f"{'':7}  {'':{width}}  Fix: {finding.fix}")


def as_values(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(finding) for finding in findings]
