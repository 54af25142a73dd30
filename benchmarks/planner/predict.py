"""Measures the costs of a model and writes what plans predict.

python benchmarks/planner/predict.py MODEL BATCH_SIZE CLUSTER.json OUTPUT.json [savings]

With "savings": of layouts that save memory.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import hyparflow as hf
from hyparflow.launching.memory_pool import choose_memory_pool
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs_of_model import costs_of_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build

# Partitions, replicas, and what saves memory.
LAYOUTS: tuple[tuple[int, int, dict[str, Any]], ...] = ((1, 1, {}), (2, 1, {}), (1, 2, {}))
MICROBATCHES = (1, 2, 4, 8)
SAVING: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (2, 1, {"recompute": "block"}),
    (2, 1, {"recompute": "segments"}),
    (1, 2, {"recompute": "block"}),
    (1, 2, {"shard_optimizer": True}),
)
SAVING_MICROBATCHES = (1, 4)
TIMES = 2  # that costs are measured


def main() -> None:
    name, rows, machine, output, *savings = sys.argv[1:]
    batch_size = int(rows)
    choose_memory_pool(is_rank=True)
    model = build(name)
    pair = hf.Cluster.load(machine)
    costs = fastest([costs_of_model(model, "measure", batch_size, pair) for _ in range(TIMES)])
    found = []
    for partitions, replicas, saving in SAVING if savings else LAYOUTS:
        for count in SAVING_MICROBATCHES if savings else MICROBATCHES:
            plan = hf.plan(
                model,
                batch_size=batch_size,
                cluster=dataclasses.replace(pair, ranks_per_node=partitions * replicas),
                num_partitions=partitions,
                num_replicas=replicas,
                num_microbatches=count,
                schedule="1f1b",
                costs=costs,
                **saving,
            )
            found.append(
                {
                    "partitions": partitions,
                    "replicas": replicas,
                    "microbatches": count,
                    "saving": saving,
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
