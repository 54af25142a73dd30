"""Does a training end with the bits of one that nothing happened to, whatever happens to it?

    python benchmarks/restarts/run.py
    python benchmarks/restarts/run.py --seeds 7 13
    python benchmarks/restarts/run.py --report

Each seed is a job with --faults faults, one after the other; jobs of every fifth seed run on two
hosts, those of every sixth on four ranks. Jobs that are run again take the place of those before in
results.json, from which table.rst is made. A job that does not end as it must is told with its
seed, and what it wrote stays.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.restart_faults import DEADLINE, KINDS, Plan, draw, expected, try_out
from machine import described, machine

from hyparflow.formats.text import aligned

HERE = Path(__file__).resolve().parent
NAMES = {
    "kill": "a rank is killed (SIGKILL)",
    "stop": "a rank is stopped (SIGSTOP)",
    "raise": "an exception on a rank",
    "disk": "the disk of a rank is full",
    "mpirun": "mpirun is killed",
    "cut": "the cable between hosts is cut",
}
MOMENTS = {
    "start": "before the first step",
    "step": "in a step",
    "share": "a share half written",
    "record": "its record half written",
    "commit": "before the index is renamed",
    "committed": "after it, before older are removed",
    "removal": "amid the removal of older ones",
}


def plan_of(seed: int, faults: int) -> Plan:
    """What a seed stands for."""
    return draw(seed, faults, has_hosts=seed % 5 == 0, ranks=4 if seed % 6 == 0 else 2)


def job(plan: Plan, bits: dict[tuple[object, ...], Any]) -> dict[str, Any]:
    """Run a job; what is kept of it."""
    folder = Path(tempfile.mkdtemp(prefix=f"restarts-{plan.seed}-"))
    if plan.training not in bits:
        bits[plan.training] = expected(plan, folder / "quiet")
    outcome = try_out(plan, bits[plan.training], folder / "faulty")
    found = asdict(outcome)
    output = found.pop("output")
    found["plan"].pop("faults")
    if outcome.problems:
        folder.joinpath("output.txt").write_text(output)
        print(f"seed {plan.seed} is not as it must be, see {folder}:", *outcome.problems, sep="\n")
    else:
        shutil.rmtree(folder)
    return found


def figures(values: list[float]) -> list[str]:
    """Their median, nine tenths and largest."""
    if not values:
        return ["-"] * 3
    tenths = statistics.quantiles(values, n=10, method="inclusive") if values[1:] else values * 9
    return [f"{value:.1f}" for value in (statistics.median(values), tenths[8], max(values))]


def row(name: str, losses: list[dict[str, Any]]) -> list[str]:
    """A line of the table: the faults of one kind."""
    ended = [loss for loss in losses if loss["how"]]
    known = [loss for loss in ended if loss["start"]]  # the next attempt came to a first step
    parts = [
        statistics.median(loss[part] for loss in known) if known else 0.0
        for part in ("noticed", "pause", "start", "twice", "steps")
    ]
    medians = [f"{part:.1f}" for part in parts] if known else ["-"] * 5
    lost = figures([loss["seconds"] for loss in ended])
    return [name, str(len(losses)), str(len(ended)), *lost, *medians]


def table(results: dict[str, Any]) -> str:
    """All jobs as text."""
    jobs = results["jobs"]
    losses = [loss for one in jobs for loss in one["losses"]]
    head = ["what happens", "faults", "restarts", "median", "90 %", "largest", "noticed", "pause"]
    head += ["start-up", "again", "steps"]
    rows = [row(NAMES[kind], [x for x in losses if x["fault"]["kind"] == kind]) for kind in KINDS]
    times = Counter(loss["fault"]["moment"] for loss in losses)
    moments = [["when", "faults"], *([MOMENTS[name], str(times[name])] for name in MOMENTS)]
    wrong = [one["plan"]["seed"] for one in jobs if one["problems"]]
    others = sum(len(one["unprovoked"]) for one in jobs)
    last = [
        f"{len(jobs)} jobs, {len(losses)} faults; jobs that did not end with the bits: {len(wrong)}"
        + (f" (seeds {wrong})" if wrong else ""),
        f"attempts that ended without a fault of these: {others}",
    ]
    return "\n".join(
        [
            described(results["machine"]),
            "",
            *aligned([head, *rows]),
            "",
            *aligned(moments),
            "",
            *last,
        ]
    )


def write(results: dict[str, Any], path: Path) -> None:
    """The results, and the table that is made of them."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    lines = table(results).splitlines()
    text = "::\n\n" + "\n".join(f"    {line}".rstrip() for line in lines) + "\n"
    path.with_name("table.rst").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=range(1, 26))
    parser.add_argument("--faults", type=int, default=8, help="of a job")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "deadline": DEADLINE, "jobs": []}
    if args.results.exists():
        results = json.loads(args.results.read_text())
    bits: dict[tuple[object, ...], Any] = {}
    for seed in () if args.report else args.seeds:
        found = job(plan_of(seed, args.faults), bits)
        others = [one for one in results["jobs"] if one["plan"]["seed"] != seed]
        results["jobs"] = sorted([*others, found], key=lambda one: one["plan"]["seed"])
        write(results, args.results)
        number, seconds = len(found["losses"]), found["seconds"]
        said = "; ".join(found["problems"]) or "the same bits"
        print(f"seed {seed}: {number} faults, {seconds:.0f} s: {said}", flush=True)
    write(results, args.results)
    print(table(results))


if __name__ == "__main__":
    main()
