"""Trains 2 partitions x 2 replicas, and compares with plain Keras.

python hosts.py RESULT [MARK]: writes both losses to RESULT; with MARK, trains without end, and
makes that file in the middle of it.
"""

from __future__ import annotations

import json
import pathlib
import socket
import sys
from typing import Any

import keras
import numpy as np

import hyparflow as hf

ROWS, WIDTH = 128, 128


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


class Mark(keras.callbacks.Callback):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 3:
            self._path.write_text("training")


def main() -> None:
    keras.config.set_floatx("float64")
    result = pathlib.Path(sys.argv[1])
    marks = [Mark(pathlib.Path(name)) for name in sys.argv[2:]]
    x = np.random.default_rng(0).normal(size=(ROWS, 64))
    arguments = {"batch_size": 32, "epochs": 100000 if marks else 2, "verbose": 0}
    y = x.sum(1, keepdims=True)
    layout = {"num_partitions": 2, "num_replicas": 2, "num_microbatches": 2}
    history = hf.fit(build(), x, y, callbacks=marks, **arguments, **layout)
    print(f"rank {hf.rank()} is on {socket.gethostname()}", flush=True)
    if hf.is_leader():
        expected = build().fit(x, y, **arguments).history["loss"]
        found = {"actual": history.history["loss"], "expected": expected}
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
