"""What faster kernels gain on one core: fit of Keras and hyparflow.

    python benchmarks/kernels/run.py

Where TensorFlow leaves oneDNN off, both also with oneDNN as a whole; on other processors, which
have instructions for them, both also with numbers of bfloat16 (Keras's "mixed_bfloat16").
For each model four jobs of one thread stay alive and take turns of a few steps; the ratio to Keras
as it comes is that of the CPU seconds of two turns beside each other. Prints medians and quartiles,
and writes results.json beside this file or to --output.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described, machine
from turns import Job, Setup, add_arguments

from hyparflow.comm.one_dnn import is_left_off


def setups() -> tuple[Setup, ...]:
    """What is compared on this processor; the first is what the others are compared with."""
    if is_left_off(os.environ):
        other, more = "oneDNN", {"environment": {"TF_ENABLE_ONEDNN_OPTS": "1"}}
    else:
        other, more = "bfloat16", {"policy": "mixed_bfloat16"}
    return (
        Setup("Keras", "plain"),
        Setup(f"Keras, {other}", "plain", **more),
        Setup("hyparflow", "hyparflow", is_traced=False),
        Setup(f"hyparflow, {other}", "hyparflow", is_traced=False, **more),
    )


BATCHES = {
    "resnet56": 64,
    "resnet110": 64,
    "densenet121": 64,
    "mobilenetv2": 64,
    "vgg16": 32,
    "transformer6": 32,
    "lstm": 64,
}


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """The seconds of a step of each setup, turn by turn, and what it took to start and to hold."""
    compared = setups()
    wall: dict[str, list[float]] = {setup.name: [] for setup in compared}
    cpu: dict[str, list[float]] = {setup.name: [] for setup in compared}
    with contextlib.ExitStack() as stack:
        jobs = []
        for setup in compared:
            jobs.append(Job(setup, model, BATCHES[model], args))
            stack.callback(jobs[-1].stop)
        for number in range(args.turns):
            # Each second turn runs backwards, so that none always comes after the same other.
            for job in jobs[:: 1 if number % 2 == 0 else -1]:
                wall[job.setup.name].append(job.turn(number))
                cpu[job.setup.name].append(job.cpu_seconds)
        for job in jobs:
            job.finish()
        peaks = {job.setup.name: job.end()[0][0] for job in jobs}
    first = {job.setup.name: job.first_step for job in jobs}
    return {
        "batch": BATCHES[model],
        "ratios": {name: ratios(cpu[name], cpu["Keras"]) for name in cpu},
        "first step": first,
        "peak": peaks,
        "wall": wall,
        "cpu": cpu,
    }


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of how many times as fast, turn by turn."""
    return statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)


def table(results: dict[str, Any]) -> str:
    """The results, model by model."""
    lines = [f"{'model':13} {'setup':25} times as fast (quartiles)  first step   peak"]
    for model, found in results.items():
        for name, (low, middle, high) in found["ratios"].items():
            lines.append(
                f"{model:13} {name:25} {middle:.2f} ({low:.2f} to {high:.2f})"
                f"{'':9}{found['first step'][name]:7.1f} s {found['peak'][name] / 2**20:6.0f} MiB"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    add_arguments(parser, steps=2, turns=6)
    args = parser.parse_args()
    results = {}
    for model in args.models:
        results[model] = measure(model, args)
        print(table({model: results[model]}), flush=True)
    found = {"machine": machine(), "models": results}
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(described(found["machine"]))


if __name__ == "__main__":
    main()
