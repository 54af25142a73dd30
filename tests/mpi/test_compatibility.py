"""Every row of the compatibility table is true."""

from __future__ import annotations

import pytest
from compatibility.every import ROWS
from compatibility.rows import Check, Row
from compatibility.runs import Runs, layouts
from contract import WORLD

CHECKS: dict[Check, list[Row]] = {}  # rows that share a check are checked together
for row in ROWS:
    CHECKS.setdefault(row.check, []).append(row)


def describe(rows: list[Row]) -> str:
    """The name of a check, from its rows."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{rows[0].section}: {rows[0].name}{more}"


@pytest.mark.skipif(WORLD.size == 1, reason="needs several ranks")
@pytest.mark.parametrize("check", CHECKS, ids=map(describe, CHECKS.values()))
def test_rows(check: Check) -> None:
    for options in layouts().values():
        check(Runs(options))
