"""Draws faults from a seed, and sees how jobs end in which they happen.

    python tests/jobs/random_faults.py COUNT SEED [AT_ONCE [training | outside]]

prints a line for each, and a table; ``tests/jobs/test_random_faults.py`` tries some of them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import pathlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

from jobs.jobs import SCRIPTS, Job

__all__ = ["Ending", "Fault", "draw", "try_out"]

DEADLINE = 4  # HYPARFLOW_TIMEOUT
LIMIT = 90.0  # seconds after the fault after which a job is endless
START = 300.0  # seconds in which it comes to its fault, or to its end, also on a slow machine
OUTSIDE = ("import", "first", "mpi", "init", "last", "exit", "before the end")
TRAINING = ("data", "callback", "step", "save", "evaluate", "between")
SIGNALS = ("kill", "stop", "segv", "term", "quit")
KINDS = (
    *("exit 0", "exit 3", "_exit 0", "_exit 3", "raise", "unpicklable", "memory", "interrupt"),
    *("sleep", "loop", "block", "read", "thread", "close stdout", "close 1 and 2", "full"),
    *SIGNALS,
)
LAUNCHERS = ("mpirun", "mpirun", "run", "launch")
# What plain Python would say, or the launcher: hyparflow adds nothing to that.
_SAID = re.compile(
    r"Traceback|exited on|exiting\s+improperly|non-zero (exit|status)|killed by signal|exit status"
)


class Fault(NamedTuple):
    """What happens where.

    Attributes:
        kind, place, rank, layout: see `scripts/any_fault.py`.
        ranks: how many.
        launcher: "mpirun", "run" (`hyparflow run`) or "launch" (`hyparflow.launch`).
    """

    kind: str
    place: str
    rank: int
    layout: str
    ranks: int
    launcher: str


class Ending(NamedTuple):
    """How a job ended.

    Attributes:
        fault: what happened.
        how: "endless", "not reached", "launcher hung", "passed" (with 0), or "one report",
            "several" or "no word".
        seconds: from the fault to the end of the last process.
        code: the exit status.
        output: what it wrote.
    """

    fault: Fault
    how: str
    seconds: float
    code: int
    output: str


def draw(seed: int, places: tuple[str, ...] = (*OUTSIDE, *TRAINING)) -> Iterator[Fault]:
    """Faults without end, always the same for a seed."""
    chance = random.Random(seed)
    while True:
        place = chance.choice(places)
        kind = chance.choice(SIGNALS if place == "init" else KINDS)
        ranks = chance.choice((2, 2, 2, 4))
        layout = chance.choice(("data", "model", "hybrid") if ranks == 4 else ("data", "model"))
        rank = 0 if place in ("data", "callback") else chance.randrange(ranks)
        launcher = chance.choice(LAUNCHERS)
        yield Fault(kind, place, rank, layout, ranks, launcher)


def try_out(fault: Fault) -> Ending:
    """Run a job in which it happens."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "time"
        words = (fault.kind, fault.place, fault.rank, fault.layout, file)
        script = SCRIPTS / "any_fault.py"
        told = {"HYPARFLOW_TIMEOUT": str(DEADLINE)}
        if fault.launcher == "mpirun":
            job = Job(fault.ranks, script, *words, **told)
        elif fault.launcher == "launch":
            job = Job(0, script, *words, fault.ranks, **told)
        else:
            start = ("-m", "hyparflow.cli", "run", "--oversubscribe", "-n", fault.ranks)
            job = Job(0, *start, script, *words, **told)
        deadline = time.monotonic() + START
        while job.is_running() and not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        result = job.wait(LIMIT)
        since = float(file.read_text()) if file.exists() else result.end
    how = _how(result.code, result.output, "terminated after" in result.output or bool(result.left))
    if since == result.end and how != "endless":
        how = "not reached"
    return Ending(fault, how, result.end - since, result.code, result.output)


def _how(code: int, output: str, is_endless: bool) -> str:
    if is_endless:
        # Open MPI 5.0.11 itself may hang where a rank ends while another reports to it: 1 of 300.
        return "launcher hung" if "PMIX ERROR" in output else "endless"
    reports = len(re.findall(r"hyparflow: .*all ranks are stopped", output))
    if reports > 1:
        return "several"
    if code == 0:
        return "passed"
    return "one report" if reports or _SAID.search(output) else "no word"


def main(count: int, seed: int, at_once: int, which: str) -> None:
    """Try faults out, several at once, and show how they ended."""
    places = {"training": TRAINING, "outside": OUTSIDE}.get(which, (*OUTSIDE, *TRAINING))
    drawn = draw(seed, places)
    faults = [next(drawn) for _ in range(count)]
    table: dict[tuple[str, str], collections.Counter[str]] = {}
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for done in concurrent.futures.as_completed([pool.submit(try_out, f) for f in faults]):
            ending = done.result()
            key = (ending.fault.place, ending.fault.kind)
            table.setdefault(key, collections.Counter())[ending.how] += 1
            print(*ending.fault, ending.how, f"{ending.seconds:.1f} s", ending.code, sep=" | ")
            if ending.how in ("endless", "several", "no word"):
                print(re.sub("^", "    ", ending.output, flags=re.M))
            sys.stdout.flush()
    for (place, kind), counts in sorted(table.items()):
        said = ", ".join(f"{how} {number}" for how, number in counts.items())
        print(f"{place:15} {kind:15} {said}")


if __name__ == "__main__":
    count, seed, at_once, which = (*sys.argv[1:], "1", "all")[:4]
    main(int(count), int(seed), int(at_once), which)
