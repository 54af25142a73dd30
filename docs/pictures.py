"""Draws the pictures of the documentation: python docs/pictures.py.

They are plans of one small model. Their costs are counted, not measured, so that they come out the
same on every machine, in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import layers

import hyparflow as hf

FOLDER = Path(__file__).with_name("pictures")
BLOCKS = 16
BATCH = 64

# Two nodes, and a network slow enough for the sums between them to be seen.
SLOW = hf.Cluster(nodes=2, ranks_per_node=2, between=hf.Link(latency=1e-3, bandwidth=1e7))
PIPELINE: dict[str, Any] = {"num_partitions": 4, "lpp": [8, 8, 8, 10]}
PLANS: dict[str, dict[str, Any]] = {
    "hybrid": {"num_partitions": 2, "num_replicas": 2, "num_microbatches": 4, "lpp": [16, 18]}
    | {"cluster": SLOW},
    "one_microbatch": PIPELINE | {"num_microbatches": 1},
    "gpipe": PIPELINE | {"num_microbatches": 8, "schedule": "gpipe"},
    "1f1b": PIPELINE | {"num_microbatches": 8},
    "interleaved": {"num_partitions": 4, "lpp": [4] * 7 + [6]}
    | {"num_microbatches": 8, "schedule": "interleaved", "stages_per_partition": 2},
    "zero_bubble": PIPELINE | {"num_microbatches": 8, "schedule": "zero-bubble"},
    "zero_bubble_v": {"num_partitions": 4, "lpp": [4] * 7 + [6]}
    | {"num_microbatches": 8, "schedule": "zero-bubble-v"},
}


def build() -> keras.Model:
    """Equal residual blocks, so that equal partitions exist."""
    inputs = keras.Input((32, 32, 64))
    x = inputs
    for _ in range(BLOCKS):
        y = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10)(x), name="model")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model = build()
    for name, arguments in PLANS.items():
        wishes = {"schedule": "1f1b"} | arguments
        plan = hf.plan(model, batch_size=BATCH, num_ranks=4, costs="estimate", **wishes)
        print(f"{name}: {plan.step_seconds * 1e3:.0f} ms, idle {plan.idle_share:.1%}")
        plan.plot(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
