"""How fast: hyparflow's strategies and schedules against plain Keras, in turns in one run.

    python benchmarks/throughput/run.py
    python benchmarks/throughput/run.py --cases resnet110:128 --setups plain data 1f1b
    python benchmarks/throughput/run.py --rivals torch --rivals-python rival/bin/python

Every setup is a job that stays alive and trains a few steps when it is its turn, while the others
are stopped; so drift of the machine meets all alike, and ratios are taken turn by turn, among jobs
that are in memory together. The baseline is the faster of plain model.fit with TensorFlow's default
threads and with one; the limit is the number of cores times the best rate of one thread over
several batch sizes, the best of which is found first. Jobs too large to be in memory together start
anew for each of two rounds, and ratios are taken round by round. Writes results.json beside this
file, or to --output, and what `report.py` makes of it.
"""

import argparse
import contextlib
import itertools
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import machine
from report import write
from rivals import RIVALS, version
from turns import Job, Setup, add_arguments

from hyparflow.tracing.summary import shares

HERE = Path(__file__).resolve().parent
CASES = ("resnet110:128", "resnet110:32", "vgg16:64", "transformer6:64", "resnet1001:16")
SIZES = (16, 32, 64, 128)  # batch sizes among which one thread is fastest
TRIAL_TURNS = 2  # to find the best of these sizes

MODEL = {"strategy": "model"}
INTERLEAVED = {"schedule": "interleaved", "stages_per_partition": 3}
STAGES = {"strategy": "data"} | INTERLEAVED | {"stages_per_partition": 4}
# Costs are measured before the first step, which is that much later.
PLANNED = {"strategy": "auto", "num_partitions": 2}
FINER = MODEL | INTERLEAVED | {"stages_per_partition": 16}
SETUPS = {
    "plain": Setup("model.fit, default threads", "plain", threads=None),
    "plain1": Setup("model.fit, 1 thread", "plain"),
    "one": Setup("hf.fit, 1 process, 1 thread", "hyparflow"),
    "apart": Setup("Keras x2, nothing summed", "apart", 2),
    "data": Setup("data x2", "hyparflow", 2, options={"strategy": "data"}),
    "gpipe": Setup("model x2, gpipe", "hyparflow", 2, options=MODEL | {"schedule": "gpipe"}),
    "1f1b": Setup("model x2, 1f1b", "hyparflow", 2, options=MODEL | {"schedule": "1f1b"}),
    "interleaved": Setup("model x2, interleaved, V=3", "hyparflow", 2, options=MODEL | INTERLEAVED),
    "zero-bubble": Setup(
        "model x2, zero-bubble", "hyparflow", 2, options=MODEL | {"schedule": "zero-bubble"}
    ),
    "planned": Setup("model x2, planned", "hyparflow", 2, options=PLANNED),
    "horovod": Setup("Horovod x2", "horovod", 2),
}
# Not among what is measured by default: what a trace costs, which all jobs of hyparflow write, and
# what is gained where a replica sums the gradients of a stage while it computes another, and where
# few micro-batches leave a partition idle for long.
FURTHER = {
    f"untraced {name}": SETUPS[name]._replace(
        name=f"{SETUPS[name].name}, no trace", is_traced=False
    )
    for name in ("data", "1f1b")
} | {
    "stages": Setup("data x2, 4 stages", "hyparflow", 2, options=STAGES),
    "finer": Setup("model x2, interleaved, V=16", "hyparflow", 2, options=FINER),
}
ALL = SETUPS | FURTHER | RIVALS["torch"].setups
# What is in memory together: 24 GiB hold so many jobs of ResNet-110 with 128 rows. Each group has
# what its ratios need. Plain Keras takes over 9 GiB for ResNet-1001, so one at a time; and of two
# times two processes with the whole model, two.
PLAIN, MODELS = ("plain", "plain1"), ("1f1b", "interleaved", "zero-bubble", "planned")
FIRST = (*PLAIN, "one", "data", *MODELS)
SECOND = (*PLAIN, "data", "gpipe", "apart", "horovod")
GROUPS = {
    "vgg16": (FIRST, (*SECOND, "stages")),  # its gradients take the longest
    "resnet1001": (("plain1", "finer"), ("plain", "finer"), ("data", "horovod")),
}
ALONE = {("resnet1001", ("data", "horovod"))}  # one job at a time is in memory
ROUNDS = 2  # in which these start
LARGE = ("resnet1001",)  # of which no job more than asked for fits


def main() -> None:
    args = parse()
    # Jobs are stopped on the way out, so that none outlives a run that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    results: list[dict[str, Any]] = json.loads(path.read_text())["cases"] if args.add else []
    best: dict[str, int] = {}  # batch size of each model
    for case in args.cases:
        model, _, batch = case.partition(":")
        if model not in best:
            best[model] = best_size(model, int(batch), args)
        found = examine(model, int(batch), best[model], args)
        others = [r for r in results if (r["model"], r["batch"]) != (model, int(batch))]
        results = sorted([*others, found], key=place)
        path.write_text(json.dumps({"cases": results}, indent=1) + "\n")
        write(results, args.output)
    print((args.output / "table.rst").read_text())


def place(result: dict[str, Any]) -> int:
    """Where a case stands in the table."""
    name = f"{result['model']}:{result['batch']}"
    return CASES.index(name) if name in CASES else len(CASES)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images per second, in turns.")
    parser.add_argument("--cases", nargs="+", default=CASES, help="MODEL:BATCH")
    parser.add_argument("--setups", nargs="+", choices=ALL, help="these only, all at a time")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="for the limit")
    parser.add_argument("--add", action="store_true", help="keep the other cases' results")
    add_arguments(parser, steps=3, turns=7)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--horovod", default=sys.executable, help="a Python that has Horovod")
    rivals = [kind for kind, rival in RIVALS.items() if rival.groups]
    parser.add_argument("--rivals", nargs="*", choices=rivals, default=[], help="measure as well")
    parser.add_argument("--rivals-python", default=sys.executable, help="a Python that has them")
    return parser.parse_args()


def examine(model: str, batch: int, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """All setups of one case; one thread is fastest with batches of `size` rows."""
    print(f"{model}, batch {batch}", flush=True)
    start = time.perf_counter()
    groups, versions = [], {}
    for names in [args.setups] if args.setups else groups_of(model, args.rivals):
        take = take_rounds if (model, tuple(names)) in ALONE else take_turns
        setups = chosen(names, model, args)
        groups.append(compare(model, batch, size, setups, args, take))
        versions |= {s.kind: version(s.kind, s.python) for s in setups if s.kind in RIVALS}
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    where = machine()
    where["versions"] |= versions
    return {"model": model, "batch": batch, "machine": where, "groups": groups}


def groups_of(model: str, rivals: Sequence[str]) -> list[tuple[str, ...]]:
    """The setups that are in memory together, group by group."""
    asked = [RIVALS[kind] for kind in rivals]
    further = [rival.groups for rival in asked if model in (rival.models or [model])]
    return [*GROUPS.get(model, (FIRST, SECOND)), *itertools.chain(*further)]


def best_size(model: str, batch: int, args: argparse.Namespace) -> int:
    """The batch size at which one thread is fastest; `batch` where others take too much memory."""
    sizes = [batch] if model in LARGE else args.sizes or [batch]
    if len(sizes) == 1:
        return int(sizes[0])
    print(f"{model}, one thread", flush=True)
    asked = [(SETUPS["plain1"], rows) for rows in sizes]
    _, rates = take_turns(model, asked, TRIAL_TURNS, args)
    best = max(range(len(sizes)), key=lambda number: statistics.median(rates[number]))
    return int(sizes[best])


def compare(
    model: str,
    batch: int,
    size: int,
    setups: list[Setup],
    args: argparse.Namespace,
    take: Callable[..., tuple[list[dict[str, Any]], list[list[float]]]],
) -> dict[str, Any]:
    """The limit, from one thread at `size` rows or `batch`, and a row for each setup.

    Ratios are taken among those that `take` trains in one call. Where few fit in memory, no job is
    added for the limit.
    """
    asked = [(setup, batch) for setup in setups]
    if (SETUPS["plain1"], size) not in asked and model not in LARGE:
        asked.append((SETUPS["plain1"], size))
    rows, rates = take(model, asked, args.turns, args)
    each = list(zip(asked, rates, strict=True))
    single = [found for (setup, _), found in each if setup == SETUPS["plain1"]]
    best = max(map(statistics.median, single), default=None)
    limit = None if best is None else best * (psutil.cpu_count() or 1)
    plain = [found for (setup, rows), found in each if setup.kind == "plain" and rows == batch]
    baseline = max(plain, key=statistics.median, default=None)
    rivals = {
        kind: max(
            (found for (setup, _), found in each if setup.kind == kind),
            key=statistics.median,
            default=None,
        )
        for kind in RIVALS
    }
    for row in rows:
        row["to_baseline"] = None if baseline is None else ratio(row["rates"], baseline)
        row["to_limit"] = None if limit is None else statistics.median(row["rates"]) / limit
        for kind, rival in rivals.items():
            row[f"to_{kind}"] = None if rival is None else ratio(row["rates"], rival)
    return {"limit": limit, "rows": rows[: len(setups)]}


def take_turns(
    model: str, asked: list[tuple[Setup, int]], turns: int, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Train all of `asked` (setup, batch) in turns; a row and the rates of each.

    Turns have as many samples, for those of few are too short to say much.
    """
    most = max(batch for _, batch in asked)
    with contextlib.ExitStack() as stack:

        def launch(setup: Setup, batch: int) -> Job:
            job = Job(setup, model, batch, args, turns, args.steps * most // batch)
            stack.callback(job.stop)
            print(f"  {setup.name}, batch {batch}: first step {job.first_step:.1f} s", flush=True)
            return job

        jobs = [launch(*one) for one in asked]
        rates: list[list[float]] = [[] for _ in jobs]
        for number in range(turns):
            for job, found in zip(jobs, rates, strict=True):
                found.append(job.batch / job.turn(number))
        for job in jobs:
            job.finish()
        return [row_of(job, found) for job, found in zip(jobs, rates, strict=True)], rates


def take_rounds(
    model: str, asked: list[tuple[Setup, int]], turns: int, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """The same for jobs that do not fit in memory together: one after the other, in rounds.

    A row is that of the last round, with the rates of all.
    """
    rates: list[list[float]] = [[] for _ in asked]
    for _ in range(ROUNDS):
        rows = []
        for one, found in zip(asked, rates, strict=True):
            [row], [more] = take_turns(model, [one], -(-turns // ROUNDS), args)
            found += more
            rows.append(row | {"rates": found, "rate": statistics.median(found)})
    return rows, rates


def chosen(names: Sequence[str], model: str, args: argparse.Namespace) -> list[Setup]:
    """The setups of these names; without those of rivals that cannot train the model here."""
    pythons = {"horovod": args.horovod, "torch": args.rivals_python}
    setups = [ALL[name] for name in names]
    missing = set()
    for kind in sorted({setup.kind for setup in setups if setup.kind in RIVALS}):
        rival = RIVALS[kind]
        if rival.models and model not in rival.models:
            print(f"  without {rival.name}: it has no model {model} here", flush=True)
            missing.add(kind)
        elif version(kind, pythons[kind]) is None:
            print(f"  without {rival.name}: {rival.install}", flush=True)
            missing.add(kind)
    kept = [setup for setup in setups if setup.kind not in missing]
    return [setup._replace(python=pythons.get(setup.kind, setup.python)) for setup in kept]


def row_of(job: Job, rates: list[float]) -> dict[str, Any]:
    peaks, trace = job.end()
    ranks = [] if trace is None else [shares(rank) for rank in trace.ranks]
    hidden = [rank.hidden for rank in ranks if rank.hidden is not None]
    return {
        "name": job.setup.name,
        "rates": rates,
        "rate": statistics.median(rates),
        "idle": statistics.mean(rank.idle for rank in ranks) if ranks else None,
        "hidden": statistics.mean(hidden) if hidden else None,
        "first_step": job.first_step,
        "peaks": peaks,
        "plan": trace and trace.plan and plan_text(trace.plan),
    }


def plan_text(plan: dict[str, Any]) -> str:
    """What a plan chose."""
    each, count = plan["stages_per_partition"], plan["num_microbatches"]
    return f"V={each}, M={count}" if each > 1 else f"{plan['schedule']}, M={count}"


def ratio(rates: list[float], others: list[float]) -> float:
    """The median over turns of how many times faster."""
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


if __name__ == "__main__":
    main()
