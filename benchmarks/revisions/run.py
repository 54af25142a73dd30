"""Did a change cost speed? Two revisions of hyparflow train the same model in turns.

    python benchmarks/revisions/run.py 316f195 HEAD

Each revision is checked out into a folder of its own. Per case and round four jobs stay alive, two
of each revision, and take turns of a few steps while the others are stopped. The ratio of the two
jobs of one revision, which run the same program, says how much a difference means; with --single
there is one job of each, for models of which four do not fit in memory. Prints medians and
quartiles, and writes results.json beside this file or to --output.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import machine
from turns import Job, Setup, add_arguments

ROOT = Path(__file__).resolve().parents[2]
CASES: dict[str, dict[str, Any]] = {
    "data": {"strategy": "data"},
    "1f1b": {"strategy": "model", "schedule": "1f1b"},
    "interleaved": {"strategy": "model", "schedule": "interleaved", "stages_per_partition": 3},
}


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[str]:
    """A Python that imports hyparflow as of `revision`."""
    with tempfile.TemporaryDirectory(prefix="revision-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "-q", "--detach", tree, revision], check=True
        )
        python = Path(folder) / "python"
        python.write_text(
            f'#!/bin/sh\nexport PYTHONPATH="{tree}:$PYTHONPATH"\nexec "{sys.executable}" "$@"\n'
        )
        python.chmod(0o700)
        try:
            yield str(python)
        finally:
            remove = ["git", "-C", ROOT, "worktree", "remove", "--force", tree]
            subprocess.run(remove, check=True)


def take_turns(jobs: list[Job], turns: int) -> list[list[float]]:
    """Seconds of a step: a row for each turn, a column for each job."""
    rows = []
    for number in range(turns):
        row = dict.fromkeys(range(len(jobs)), 0.0)
        # Each second turn runs backwards, so that none always comes after the same other.
        for index in list(row)[:: 1 if number % 2 == 0 else -1]:
            row[index] = jobs[index].turn(number)
        rows.append(list(row.values()))
    return rows


def measure(
    name: str, pythons: tuple[str, str], model: str, batch: int, args: Any
) -> list[list[float]]:
    """One round of a case; columns are old, new, and the same again if there are two of each."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for python in pythons * (1 if args.single else 2):
            setup = Setup(name, "hyparflow", 2, options=CASES[name], python=python, is_traced=False)
            jobs.append(Job(setup, model, batch, args))
            stack.callback(jobs[-1].stop)
        return take_turns(jobs, args.turns)


def summed_up(rows: list[list[float]]) -> dict[str, Any]:
    """New over old, and, to see what that means, one job over another of the same revision."""
    new = [sum(row[1::2]) / sum(row[::2]) for row in rows]
    same = [row[column] / row[column + 2] for row in rows for column in range(len(row) - 2)]
    return {
        "new / old": statistics.median(new),
        "quartiles": statistics.quantiles(new, n=4)[::2],
        "same / same, quartiles": statistics.quantiles(same, n=4)[::2] if same else [],
        "seconds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2, help="each with new processes")
    parser.add_argument("--single", action="store_true", help="one job of each revision")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["data", "1f1b"])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    add_arguments(parser, steps=3, turns=6)
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "revisions": [args.old, args.new]}
    with checked_out(args.old) as old, checked_out(args.new) as new:
        for name in args.cases:
            rows = []
            for _ in range(args.rounds):
                rows += measure(name, (old, new), args.model, args.batch, args)
            results[name] = found = summed_up(rows)
            low, high = found["quartiles"]
            same = " to ".join(f"{value:.3f}" for value in found["same / same, quartiles"]) or "-"
            print(
                f"{args.model} {name:12} new / old {found['new / old']:.3f} "
                f"({low:.3f} to {high:.3f}); same / same {same}",
                flush=True,
            )
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
