"""How replicas, partitions and both use many cores of one machine, one rank on each, in turns.

python benchmarks/throughput/cores.py --model resnet56 --batch 512
"""

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from turns import Job, Setup, add_arguments

PLAIN = Setup("model.fit, default threads", "plain", threads=None)
ONE = Setup("model.fit, 1 thread", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=psutil.cpu_count(logical=False) or 1)
    add_arguments(parser, steps=2, turns=4)
    args = parser.parse_args()
    # One thread trains as many rows as a replica, for a batch of all would take it too long.
    asked = [(PLAIN, args.batch), (ONE, max(1, args.batch // args.ranks))]
    asked += [(setup, args.batch) for setup in setups(args.ranks)]
    with contextlib.ExitStack() as stack:
        jobs = []
        for setup, batch in asked:
            jobs.append(Job(setup, args.model, batch, args))
            stack.callback(jobs[-1].stop)
            print(f"{setup.name}: first step {jobs[-1].first_step:.1f} s", flush=True)
        rates: list[list[float]] = [[] for _ in jobs]
        for number in range(args.turns):
            for job, found in zip(jobs, rates, strict=True):
                found.append(job.batch / job.turn(number))
    print(f"\n{'':36} {'samples/s':>9} {'/ default':>9} {'/ 1 thread':>10}")
    for job, found in zip(jobs, rates, strict=True):
        default, one = (
            statistics.median(a / b for a, b in zip(found, others, strict=True))
            for others in rates[:2]
        )
        rate = statistics.median(found)
        print(f"{job.setup.name:36} {rate:9.1f} {default:9.2f} {one:10.2f}")


def setups(ranks: int) -> list[Setup]:
    """Replicas only, pipelines of two and of four partitions, and one pipeline."""
    found = [Setup(f"data x{ranks}", "hyparflow", ranks, options={"strategy": "data"})]
    for partitions, each, microbatches in ((2, 4, 2), (4, 2, 8)):
        if ranks % partitions or ranks == partitions:
            continue
        options = {
            "num_partitions": partitions,
            "num_replicas": ranks // partitions,
            "schedule": "interleaved",
            "stages_per_partition": each,
            "num_microbatches": microbatches,
        }
        name = f"{ranks // partitions} x {partitions}, interleaved, V={each}, M={microbatches}"
        found.append(Setup(name, "hyparflow", ranks, options=options))
    options = {"strategy": "model", "num_microbatches": 2 * ranks}
    name = f"model x{ranks}, 1f1b, M={2 * ranks}"
    return [*found, Setup(name, "hyparflow", ranks, options=options)]


if __name__ == "__main__":
    main()
