"""Every row of the compatibility table is true."""

from __future__ import annotations

import pytest
from compatibility.every import ROWS
from compatibility.rows import Check, Row
from compatibility.runs import Runs, layouts
from contract import WORLD

# Sections that a hybrid of partitions and replicas tests best, on 4 ranks. The others are checked
# on 2 ranks, where of what works every sixth check runs, with "data" or "model" in turn, and all
# that is refused. With --everything, all are checked with all, as when the page is written.
EVERY = 6
# Always: no other test trains by XLA.
ALWAYS = ("jit_compile",)
ON_4 = ("Arguments of optimizers", "Precision", "Models of KerasHub")
# On 2 ranks always with partitions, of which each applies the optimizer to a part of the weights.
CUT = ("Optimizers", "Learning rate schedules")

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
    section = CHECKS[check][0].section
    everything = request.config.getoption("--everything")
    number = list(CHECKS).index(check)
    wanted = (section in ON_4) == (WORLD.size >= 4)
    if not (wanted or everything):
        pytest.skip("on this number of ranks only with --everything")
    chosen = list(layouts().values())
    refused = any(row.state != "works" for row in CHECKS[check])
    always = everything or refused or any(row.name in ALWAYS for row in CHECKS[check])
    if number % EVERY and not always:
        pytest.skip("for its time only with --everything")
    if section in CUT and not everything:
        chosen = [layouts()["model"]]
    elif not (refused or everything):
        chosen = chosen[number // EVERY % len(chosen) :][:1]
    for options in chosen:
        check(Runs(options))
