"""Measures the costs of a model and writes what plans predict.

python benchmarks/planner/predict.py MODEL BATCH_SIZE CLUSTER.json OUTPUT.json
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import hyparflow as hf
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.plan_model import costs_of_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build

LAYOUTS = ((1, 1), (2, 1), (1, 2))
MICROBATCHES = (1, 2, 4, 8)
TIMES = 2  # that costs are measured


def main() -> None:
    name, rows, machine, output = sys.argv[1:]
    batch_size = int(rows)
    model = build(name)
    pair = hf.Cluster.load(machine)
    costs = fastest([costs_of_model(model, "measure", batch_size, pair) for _ in range(TIMES)])
    found = []
    for partitions, replicas in LAYOUTS:
        for count in MICROBATCHES:
            plan = hf.plan(
                model,
                batch_size=batch_size,
                cluster=dataclasses.replace(pair, ranks_per_node=partitions * replicas),
                num_partitions=partitions,
                num_replicas=replicas,
                num_microbatches=count,
                schedule="1f1b",
                costs=costs,
            )
            found.append(
                {
                    "partitions": partitions,
                    "replicas": replicas,
                    "microbatches": count,
                    "arguments": plan.arguments,
                    "seconds": plan.step_seconds,
                    "memory": [part.memory.total for part in plan.partitions],
                }
            )
    Path(output).write_text(json.dumps(found))


def fastest(measured: list[Costs]) -> Costs:
    """The shortest time of each operation: what it takes while nobody else slows the machine."""
    names = ("forward", "backward", "fused", "crowded")
    times = {name: np.min([getattr(costs, name) for costs in measured], axis=0) for name in names}
    return dataclasses.replace(measured[0], **times)


if __name__ == "__main__":
    main()
