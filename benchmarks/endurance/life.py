"""A job with a long life: trains again and again, and says what it keeps.

    python life.py CASE KIND COUNT FILE            (or by mpirun, for two ranks)

CASE is "fits" (of one model), "models" (each made, trained and deleted) or "models, cleared" (with
keras.backend.clear_session() after each). KIND is "plain", "data" or "model". The leader writes to
FILE what it had after the first half and after the last.
"""

import gc
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil

import hyparflow as hf

ROWS, FEATURES, WIDTH, DEPTH = 256, 16, 64, 6


def build() -> Any:
    """A compiled model of seven layers, 22,000 weights."""
    x = inputs = keras.Input((FEATURES,))
    for _ in range(DEPTH):
        x = keras.layers.Dense(WIDTH, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse")
    return model


def train(model: Any, kind: str, validate: bool) -> None:
    """One epoch."""
    x = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype("float32")
    y = x.sum(1, keepdims=True)
    arguments: dict[str, Any] = {"batch_size": 32, "verbose": 0}
    if validate:
        arguments["validation_data"] = (x[:64], y[:64])
    if kind == "plain":
        model.fit(x, y, **arguments)
    else:
        hf.fit(model, x, y, strategy=kind, **arguments)


def kept(kind: str) -> dict[str, int]:
    """What this process has."""
    process = psutil.Process()
    found = {
        "KiB": process.memory_info().rss >> 10,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "Python's threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }
    if kind != "plain":
        from mpi4py import MPI

        comm = MPI.COMM_SELF.Dup()  # the lowest number that is free
        found["communicators"] = comm.py2f()
        comm.Free()
    return found


def main() -> None:
    case, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    keras.utils.set_random_seed(0)
    model: Any = build() if case == "fits" else None
    seconds: list[float] = []
    half: dict[str, int] = {}
    for number in range(count):
        start = time.perf_counter()
        if case != "fits":
            model = build()
        train(model, kind, validate=number % 2 == 1)
        seconds.append(time.perf_counter() - start)
        if case != "fits":
            model = None
        if case == "models, cleared":
            keras.backend.clear_session()
        gc.collect()
        if number == count // 2 - 1:
            half = kept(kind)
    end, quarter = kept(kind), count // 4
    result = {
        "KiB of each": (end["KiB"] - half["KiB"]) / (count - count // 2),
        "objects of each": (end["objects"] - half["objects"]) / (count - count // 2),
        "half": half,
        "end": end,
        "seconds, second quarter": statistics.median(seconds[quarter : 2 * quarter]),
        "seconds, last quarter": statistics.median(seconds[-quarter:]),
    }
    if kind == "plain" or hf.is_leader():
        Path(sys.argv[4]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
