"""How even stages are that are cut by counting, and how well counts tell what stages take.

    python benchmarks/balance/run.py
    python benchmarks/balance/run.py --cases resnet110:128 vgg16:64

Each model trains a few steps on two ranks, interleaved, with a trace. The times of its stages are
compared with their costs as `hyparflow.model.operation_cost` counts them, and all models' together
are fitted by what was counted, which is where the numbers there come from. Writes table.rst beside
this file, or to --output.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build
from turns import Job, Setup, add_arguments

from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.pipeline.actions import COMPUTATIONS
from hyparflow.pipeline.balance import balance
from hyparflow.pipeline.partition import allowed_cuts
from hyparflow.tracing.trace import Trace

HERE = Path(__file__).resolve().parent
CASES = ("resnet110:128", "resnet218:32", "densenet121:64", "vgg16:64", "transformer6:64")
MICROBATCHES = 4
TITLES = ("a multiplication", "a value written", "a call", "a weight")


class Stages(NamedTuple):
    """The stages of a model.

    Attributes:
        name: the case.
        seconds: that a forward and backward of one row take, of each stage.
        costs: as hyparflow counts them.
        counts: of one row, [stage, (multiplications, values, calls, weights)].
    """

    name: str
    seconds: np.ndarray
    costs: np.ndarray
    counts: np.ndarray


def main() -> None:
    args = parse()
    found = [examine(case, args) for case in args.cases]
    text = table(found)
    (args.output / "table.rst").write_text(text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How even stages are.")
    parser.add_argument("--cases", nargs="+", default=CASES, help="MODEL:BATCH")
    parser.add_argument("--stages", type=int, default=4, help="per partition")
    add_arguments(parser, steps=8, turns=1)
    parser.add_argument("--output", type=Path, default=HERE)
    return parser.parse_args()


def examine(case: str, args: argparse.Namespace) -> Stages:
    model, _, batch = case.partition(":")
    options = {"strategy": "model", "schedule": "interleaved", "num_microbatches": MICROBATCHES}
    options["stages_per_partition"] = args.stages
    job = Job(Setup(case, "hyparflow", 2, options=options), model, int(batch), args)
    try:
        job.turn(0)
        job.finish()
        _, trace = job.end()
    finally:
        job.stop()
    rows = int(batch) / MICROBATCHES
    costs, counts = counted(model, 2 * args.stages, rows)
    return Stages(case, seconds(trace, 2 * args.stages) / rows, costs, counts)


def seconds(trace: Trace | None, num_stages: int) -> np.ndarray:
    """Of a micro-batch, forward and backward: medians, without the steps that compile."""
    taken: dict[tuple[int, str], list[float]] = {}
    for rank in trace.ranks if trace else []:
        for event in (event for step in rank.steps[2:] for event in step):
            if event.kind in COMPUTATIONS:
                taken.setdefault((event.stage, event.kind), []).append(event.end - event.start)
    total = np.zeros(num_stages)
    for (stage, _), times in taken.items():
        total[stage] += statistics.median(times)
    return total


def counted(name: str, num_stages: int, rows: float) -> tuple[np.ndarray, np.ndarray]:
    """Costs of the stages that the load balancer makes, and what they are made of."""
    model = build(name)
    graph = FlatGraph(model, opened_graph(model))
    operations = graph.operation_graph(model.trainable_variables)
    works = [graph.work(index) for index in range(len(graph.calls))]
    costs = np.array([work.cost for work in works])
    counts = np.array([(w.multiplications, w.values, 1 / rows, w.weights / rows) for w in works])
    starts = balance(list(costs), num_stages, allowed_cuts(operations))[:-1]
    return np.add.reduceat(costs, starts), np.add.reduceat(counts, starts)


def table(found: list[Stages]) -> str:
    lines = ["::", "", f"    {'':18} {'slowest / mean':>15} {'seconds / cost, spread':>23}"]
    for case in found:
        ratio = case.seconds / case.costs
        uneven, spread = case.seconds.max() / case.seconds.mean(), ratio.std() / ratio.mean()
        lines.append(f"    {case.name:18} {uneven:15.2f} {spread:23.2f}")
    lines += ["", "    fitted, nanoseconds, and in multiplications:"]
    lines += [
        f"    {title:18} {value * 1e9:15.3g} {value / fitted[0]:23.3g}"
        for fitted in [fit(found)]
        for title, value in zip(TITLES, fitted, strict=True)
    ]
    return "\n".join(lines) + "\n"


def fit(found: list[Stages]) -> np.ndarray:
    """Seconds of a multiplication, a value, a call, a weight: least squares of relative errors.

    Every model counts alike, however many stages it has.
    """
    shares = [(case, 1 / np.sqrt(len(case.seconds))) for case in found]
    rows = np.concatenate([case.counts / case.seconds[:, None] * share for case, share in shares])
    return nnls(rows, np.concatenate([np.full(len(c.seconds), share) for c, share in shares]))[0]


if __name__ == "__main__":
    main()
