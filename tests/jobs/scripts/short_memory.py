"""Train a model on ranks whose address space is limited; each writes down what came of it.

Arguments: a folder for the outcomes, the units of each layer, and "evaluate" to evaluate first, or
"auto" to leave the layout to a plan.
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys

import keras
import numpy as np
import psutil

import hyparflow as hf

ROOM = 1 << 30  # bytes
LAYERS = 4


def build(units: int) -> keras.Model:
    layers = [keras.layers.Dense(units, use_bias=False) for _ in range(LAYERS)]
    with hf.deferred():
        model = keras.Sequential([keras.Input((units,)), *layers])
    model.compile("adam", "mse")
    return model


def main(folder: pathlib.Path, units: int, first: str = "") -> None:
    model = build(units)
    x = np.ones((4, units), np.float32)
    if first == "evaluate":
        hf.evaluate(model, x, x, verbose=0, num_partitions=2, gather=False)
    limit = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    layout = {"strategy": "auto"} if first == "auto" else {"num_partitions": 2, "gather": False}
    try:
        history = hf.fit(model, x, x, verbose=0, **layout)
        outcome = ["trained", len(history.history["loss"])]
    except ValueError as error:
        outcome = ["refused", str(error)]
    (folder / f"{hf.rank()}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
