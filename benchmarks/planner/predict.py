"""Measures the costs of a model and writes what plans predict.

python benchmarks/planner/predict.py MODEL BATCH_SIZE CLUSTER.json OUTPUT.json
"""

import dataclasses
import json
import sys
from pathlib import Path

import hyparflow as hf
from hyparflow.plans import costs_of_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build

LAYOUTS = ((1, 1), (2, 1), (1, 2))
MICROBATCHES = (1, 2, 4, 8)


def main() -> None:
    name, rows, machine, output = sys.argv[1:]
    batch_size = int(rows)
    model = build(name)
    pair = hf.Cluster.load(machine)
    costs = costs_of_model(model, "measure", batch_size, pair)
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


if __name__ == "__main__":
    main()
