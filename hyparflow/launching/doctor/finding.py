"""The finding of a check, and how it is shown."""

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
    """The finding of one check.

    Attributes:
        check: the name of the check.
        status: `OK`, `WARNING` (it may cost time, or matters only elsewhere) or `PROBLEM`
            (training over ranks will fail, or not be what it seems).
        text: the finding in words.
        fix: what the user should do; empty if nothing.
    """

    check: str
    status: str
    text: str
    fix: str = ""


def show(findings: Sequence[Finding], is_drawn: bool) -> None:
    """Write one row for each, and the fix below it.

    Args:
        findings: the findings.
        is_drawn: whether rich draws them as a table, for a terminal; plain lines otherwise.
    """
    if is_drawn:
        _draw(findings)
        return
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.status:7}  {finding.check:{width}}  {finding.text}")
        if finding.fix:
            click.echo(f"{'':7}  {'':{width}}  Fix: {finding.fix}")


def _draw(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Long lines are folded and not cut, because a path at their end may matter.
    found = Column("found", overflow="fold")
    table = Table("status", "check", found, box=box.SIMPLE_HEAD)
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\nFix: {finding.fix}")
        status = Text(finding.status, style=_COLOURS[finding.status])
        table.add_row(status, Text(finding.check), text)
    Console().print(table)


def as_values(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as values that JSON can hold."""
    return [asdict(finding) for finding in findings]
