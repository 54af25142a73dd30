"""No fault of a rank, whatever and wherever, leaves a job without an end or without a word."""

from __future__ import annotations

import concurrent.futures
import itertools
import re

import pytest
from jobs.random_faults import DEADLINE, OUTSIDE, TRAINING, Ending, Fault, draw, try_out

SEED = 25
SOONER = 20.0  # seconds over the deadline: MPI's launchers take their time to end ranks

# What a rank waited for without an end: MPI's start and its end.
KNOWN = [
    Fault("_exit 0", "first", 1, "data", 2, "mpirun"),
    Fault("stop", "first", 1, "data", 2, "run"),
    Fault("sleep", "import", 0, "data", 2, "launch"),
    Fault("stop", "init", 0, "data", 2, "mpirun"),
    Fault("stop", "last", 1, "data", 2, "mpirun"),
    Fault("loop", "exit", 0, "data", 2, "run"),
    Fault("sleep", "before the end", 1, "data", 2, "mpirun"),
    Fault("sleep", "mpi", 1, "data", 2, "mpirun"),
    Fault("_exit 0", "mpi", 1, "data", 2, "launch"),
    Fault("close stdout", "exit", 1, "data", 2, "mpirun"),
]


def check(faults: list[Fault]) -> list[Ending]:
    """Try them, a few at once: most of the time such jobs wait for the deadline."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        endings = list(pool.map(try_out, faults))
    for ending in endings:
        if ending.how == "launcher hung":
            continue
        # A rank that has closed its streams can say nothing, and one that exits with 3 does not.
        mute = ending.fault.kind in ("close 1 and 2", "exit 3") and ending.how == "no word"
        assert mute or ending.how in ("one report", "passed", "not reached"), ending
        assert ending.seconds < DEADLINE + SOONER, ending
    return endings


def test_ranks_that_are_missed_at_the_start_or_at_the_end() -> None:
    endings = check(KNOWN)
    tables = [ending.output for ending in endings[:4]]
    assert all("hyparflow: a wait passed its deadline of 4 s" in table for table in tables)
    assert "     1 | has ended\n" in tables[0]
    assert "1 | is stopped, has not started MPI" in tables[1]
    assert "0 | runs, has not started MPI" in tables[2]
    assert re.search(r"0 \| (NO .*)?is stopped, ", tables[3])  # in MPI's start, or just after it
    assert "1 | NO      | " in endings[4].output and "is stopped" in endings[4].output
    assert [ending.how for ending in endings] == 9 * ["one report"] + ["passed"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_faults_in_training() -> None:
    check(list(itertools.islice(draw(SEED, TRAINING), 100)))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_faults_outside_of_training() -> None:
    check(list(itertools.islice(draw(SEED, OUTSIDE), 200)))
