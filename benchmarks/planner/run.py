"""Are plans true? Predicted against measured time of a step and memory.

    python benchmarks/planner/run.py
    python benchmarks/planner/run.py --savings --add

For each model: the network and the costs are measured, with one thread per process; plans for
(partitions, replicas) in {(1,1), (2,1), (1,2)} and 1, 2, 4 and 8 micro-batches are made from them,
and jobs train by these plans, those of one layout in turns. Two partitions are also cut into equal
numbers of layers, in turns with the planned cut. With --savings layouts are tried that compute
forwards again, or share out the optimizer's state.
Writes results.json and table.rst beside this file, or to --output.
"""

import argparse
import contextlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from turns import THREADS, Job, Setup, add_arguments

HERE = Path(__file__).resolve().parent
MODELS = ("resnet20", "resnet56", "resnet110", "vgg16", "transformer", "densenet121")
KNOWN = (*MODELS, "mobilenetv2", "lstm")
UNGROUPED = dict.fromkeys(("num_microbatches", "lpp"))  # jobs of one layout take turns
COMPARED = 4  # micro-batches with which cuts are compared
CUT_TURNS = 12  # of the comparison of cuts: they differ by less than other things


def main() -> None:
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if args.add else []
    for name in args.models:
        start = time.perf_counter()
        kept = [
            row for row in rows if row["model"] != name or bool(row.get("saving")) != args.savings
        ]
        rows = kept + list(examine(name, args))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        path.write_text(json.dumps({"batch_size": args.batch_size, "rows": rows}, indent=1) + "\n")
        (args.output / "table.rst").write_text(table(rows) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured time and memory.")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=KNOWN)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--savings", action="store_true", help="try what saves memory")
    parser.add_argument("--add", action="store_true", help="keep the other models' results")
    add_arguments(parser, steps=3, turns=4)
    return parser.parse_args()


def examine(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one model."""
    plans = predict(name, args)
    for _, mine in itertools.groupby(plans, key=lambda plan: plan["arguments"] | UNGROUPED):
        yield from compare(name, list(mine), args)


def predict(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The plans of a model, from costs measured now."""
    with tempfile.TemporaryDirectory() as folder:
        cluster, output = Path(folder) / "cluster.json", Path(folder) / "plans.json"
        doctor = [sys.executable, "-m", "hyparflow.cli", "doctor", "--network"]
        run([*shlex.split(args.mpirun), "-n", "2", *doctor, cluster])
        savings = ["savings"] if args.savings else []
        command = [sys.executable, HERE / "predict.py", name, str(args.batch_size)]
        run([*command, cluster, output, *savings])
        plans: list[dict[str, Any]] = json.loads(output.read_text())
    return plans


def run(command: list[Any]) -> None:
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-3000:]}")


def compare(
    name: str, plans: list[dict[str, Any]], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one layout: its plans as jobs that take turns."""
    options = [plan["arguments"] for plan in plans]
    saves = bool(plans[0]["saving"])
    balanced = None if saves else next((o for o in options if is_compared(o)), None)
    if balanced is not None:
        count = sum(balanced["lpp"])
        options.append(balanced | {"lpp": [count - count // 2, count // 2]})
    ranks = plans[0]["partitions"] * plans[0]["replicas"]
    with contextlib.ExitStack() as stack:
        jobs, cuts = [], []
        for number, arguments in enumerate(options):
            setup = Setup(f"{name} {number}", "hyparflow", ranks, options=arguments)
            in_cuts = balanced is not None and arguments in (balanced, options[-1])
            turns = args.turns + CUT_TURNS * in_cuts
            jobs.append(Job(setup, name, args.batch_size, args, turns))
            stack.callback(jobs[-1].stop)
            cuts += [jobs[-1]] * in_cuts
        seconds = in_turns(jobs, range(args.turns))
        compared = in_turns(cuts, range(args.turns, args.turns + CUT_TURNS))
        for job in jobs:
            job.finish()
        peaks = [job.end()[0] for job in jobs]
    for plan, times, sizes in zip(plans, seconds, peaks, strict=False):
        yield row_of(name, plan, min(times), sizes)
    if balanced is not None:
        planned, equal = compared
        ratios = [b / a for a, b in zip(planned, equal, strict=True)]
        yield {"model": name, "faster": statistics.median(ratios), "lpp": balanced["lpp"]}


def in_turns(jobs: list[Job], turns: range) -> list[list[float]]:
    """Seconds of a step of each job, turn by turn."""
    found: list[list[float]] = [[] for _ in jobs]
    for number in turns:
        for job, seconds in zip(jobs, found, strict=True):
            seconds.append(job.turn(number))
    return found


def is_compared(options: dict[str, Any]) -> bool:
    return options["num_partitions"] == 2 and options["num_microbatches"] == COMPARED


def row_of(name: str, plan: dict[str, Any], seconds: float, sizes: list[int]) -> dict[str, Any]:
    parts = range(plan["partitions"])
    return {
        "model": name,
        "partitions": plan["partitions"],
        "replicas": plan["replicas"],
        "microbatches": plan["microbatches"],
        "saving": plan["saving"],
        "predicted_seconds": plan["seconds"],
        "measured_seconds": seconds,
        "predicted_bytes": plan["memory"],
        "measured_bytes": [max(sizes[part :: plan["partitions"]]) for part in parts],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as text; a miss is marked by an exclamation mark."""
    lines = [
        "model         P R M   step (ms): plan  measured  ratio     peak (MiB): plan / measured "
        "by partition"
    ]
    ratios, sizes = [], []
    for row in (row for row in rows if "partitions" in row):
        ratio = row["predicted_seconds"] / row["measured_seconds"]
        pairs = list(zip(row["predicted_bytes"], row["measured_bytes"], strict=True))
        ratios.append(ratio)
        sizes += [plan / real for plan, real in pairs]
        memory = "   ".join(
            f"{plan / 2**20:.0f} / {real / 2**20:.0f} = {plan / real:.2f}{mark(plan / real, 0.2)}"
            for plan, real in pairs
        )
        lines.append(
            f"{row['model']:13} {row['partitions']} {row['replicas']} {row['microbatches']}"
            f"   {row['predicted_seconds'] * 1e3:14.1f} {row['measured_seconds'] * 1e3:9.1f}"
            f"  {ratio:5.2f}{mark(ratio, 0.15)}     {memory}{named(row.get('saving', {}))}"
        )
    lines.append("")
    lines.append(f"step time within 15 %: {inside(ratios, 0.15)} of {len(ratios)}")
    lines.append(f"peak memory within 20 %: {inside(sizes, 0.2)} of {len(sizes)}")
    lines += ["", "two partitions, 4 micro-batches: planned against equal numbers of layers"]
    lines += [
        f"{row['model']:13} {row['faster']:.2f} times as fast, lpp={row['lpp']}"
        for row in rows
        if "faster" in row
    ]
    return "\n".join(["::", "", *(f"    {line}".rstrip() for line in lines)])


def named(saving: dict[str, Any]) -> str:
    """What saves memory, in words."""
    return "".join(f"   {name}={value}" for name, value in saving.items())


def mark(ratio: float, within: float) -> str:
    return " " if abs(ratio - 1) <= within else "!"


def inside(ratios: list[float], within: float) -> int:
    return sum(abs(ratio - 1) <= within for ratio in ratios)


if __name__ == "__main__":
    main()
