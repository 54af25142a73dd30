"""A job of the benchmark: trains without checkpoints, and with them, in turns.

    mpirun -n 2 python case.py MODEL FOLDER RESULT

Each turn is an epoch. RESULT gets, of rank 0 and each turn: the seconds up to the end of the epoch,
the processor's seconds, the seconds after it until all is written, and those that the main thread
was in each save.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hyparflow as hf
from hyparflow.checkpoint.keeper import Keeper

STEPS, EVERY, ROUNDS = 100, 20, 3
# Name -> `hyparflow.Checkpoint`'s arguments; None for no checkpoints.
SETUPS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "asynchronous": {"asynchronous": True},
    "synchronous": {"asynchronous": False},
}


class EndOfEpoch(keras.callbacks.Callback):
    """When the epoch has ended, with what callbacks do then."""

    at = 0.0

    def on_train_end(self, logs: Any = None) -> None:
        self.at = time.perf_counter()


def transformer(width: int = 512, blocks: int = 16) -> tuple[keras.Model, Any, Any, int]:
    """50 million weights, 200 MiB in float32."""
    tokens = keras.Input([32], dtype="int32")
    x = keras.layers.Embedding(2048, width)(tokens)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(8, width // 8)(y, y)])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu")(y)
        x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
    model = keras.Model(tokens, keras.layers.Dense(2048)(keras.layers.LayerNormalization()(x)))
    rows = np.random.default_rng(0).integers(0, 2048, (STEPS * 4, 32))
    return model, rows, np.roll(rows, -1, 1), 4


def resnet() -> tuple[keras.Model, Any, Any, int]:
    """ResNet-110 for images of 32 x 32."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from models import build

    random, rows = np.random.default_rng(0), 16
    images = random.normal(size=(STEPS * rows, 32, 32, 3)).astype("float32")
    return build("resnet110"), images, random.integers(0, 10, STEPS * rows), rows


def main() -> None:
    kind, folder, result = sys.argv[1:4]
    keras.utils.set_random_seed(1)
    model, x, y, rows = transformer() if kind == "transformer" else resnet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kind == "transformer")
    model.compile("adam", loss)
    stalls: list[float] = []
    _time_saves(stalls)
    found: dict[str, Any] = {
        name: {"seconds": [], "cpu": [], "end": [], "stalls": []} for name in SETUPS
    }
    for turn in range(ROUNDS + 1):
        for name, given in SETUPS.items():
            shutil.rmtree(folder, ignore_errors=True)
            kept = None
            if given is not None:
                kept = hf.Checkpoint(folder, every_steps=EVERY, every_minutes=None, keep=1, **given)
            stalls.clear()
            ended, wall, cpu = EndOfEpoch(), time.perf_counter(), time.process_time()
            hf.fit(
                model,
                x,
                y,
                batch_size=rows,
                verbose=0,
                callbacks=[ended],
                checkpoint=kept,
                num_microbatches=1,
                num_partitions=1,
            )
            if turn and hf.is_leader():  # the first compiles
                entry = found[name]
                entry["seconds"].append(ended.at - wall)
                entry["cpu"].append(time.process_time() - cpu)
                entry["end"].append(time.perf_counter() - ended.at)
                entry["stalls"] += stalls
    if hf.is_leader():
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        found["bytes"] = sum(path.stat().st_size for path in files)
        found["kind"], found["ranks"] = kind, hf.size()
        Path(result).write_text(json.dumps(found))


def _time_saves(stalls: list[float]) -> None:
    """Note how long the main thread is in each save, with the wait for the one before."""
    begin, save = Keeper.begin, Keeper.save

    def begun(self: Any, step: int) -> None:
        start = time.perf_counter()
        begin(self, step)
        stalls.append(time.perf_counter() - start)

    def saved(self: Any, *arguments: Any) -> None:
        start = time.perf_counter()
        save(self, *arguments)
        if stalls:
            stalls[-1] += time.perf_counter() - start

    Keeper.begin, Keeper.save = begun, saved  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
