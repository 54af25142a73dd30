"""Every row of the compatibility table is true."""

from __future__ import annotations

import pytest
from compatibility.every import ROWS
from compatibility.rows import Check, Row
from compatibility.runs import Runs, layouts
from contract import WORLD

# On 4 ranks (hybrid) those in which partitions and replicas meet; the rest with --everything.
HYBRID = ("Arguments of optimizers", "Precision", "Models", "BatchNormalization")

CHECKS: dict[Check, list[Row]] = {}  # rows that share a check are checked together
for row in ROWS:
    CHECKS.setdefault(row.check, []).append(row)


def describe(rows: list[Row]) -> str:
    """The name of a check, from its rows."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{rows[0].section}: {rows[0].name}{more}"


@pytest.mark.skipif(WORLD.size == 1, reason="needs several ranks")
@pytest.mark.parametrize("check", CHECKS, ids=map(describe, CHECKS.values()))
def test_rows(check: Check, request: pytest.FixtureRequest) -> None:
    everything = WORLD.size < 4 or request.config.getoption("--everything")
    if not everything and CHECKS[check][0].section not in HYBRID:
        pytest.skip("on 4 ranks only with --everything")
    for options in layouts().values():
        check(Runs(options))
