"""What does a trace cost? Training steps that are recorded against steps that are not.

    mpirun -n 2 --bind-to core python benchmarks/trace/run.py

In one training, blocks of a few steps take turns at being recorded, on all ranks; so nothing else
differs between the two, and drift of the machine meets both. Each block that is recorded is
compared with the mean of its two neighbours. Rank 0 prints medians and quartiles of the ratios and
writes them to results.json beside this file or to the path given.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build
from samples import data

import hyparflow as hf
from hyparflow.comm.recorder import Recorder

MODEL, BATCH = "resnet20", 64
BLOCK, BLOCKS, WARM = 5, 241, 5  # steps of a block, blocks, and steps before the first
BEGIN = Recorder.begin_step
SETUPS: dict[str, dict[str, Any]] = {
    "data x2": {"strategy": "data"},
    "model x2, 1f1b": {"strategy": "model", "schedule": "1f1b"},
}


class Alternating:
    """Turns recorders on and off by the number of the step, which is the same on all ranks."""

    def __init__(self) -> None:
        self.steps = 0

    def begin_step(self, recorder: Recorder) -> None:
        """In place of the recorder's own."""
        recorder.on = (self.steps - WARM) // BLOCK % 2 == 1
        self.steps += 1
        BEGIN(recorder)


class Stopwatch(keras.callbacks.Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def ratios(options: dict[str, Any]) -> list[float]:
    """Of each recorded block: its median step over that of its neighbours."""
    alternating, stopwatch = Alternating(), Stopwatch()
    Recorder.begin_step = lambda self: alternating.begin_step(self)  # type: ignore[method-assign]
    steps = WARM + BLOCK * BLOCKS
    model, (x, y) = build(MODEL), data(MODEL, BATCH)
    x, y = (array.repeat(steps, 0) for array in (x, y))
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"batch_size": BATCH, "verbose": 0, "callbacks": [stopwatch]}
        hf.fit(model, x, y, **arguments, **options, trace=Path(folder) / "trace.json")
    blocks = [  # of the leader; callbacks run nowhere else
        statistics.median(stopwatch.seconds[start : start + BLOCK])
        for start in range(WARM, len(stopwatch.seconds), BLOCK)
    ]
    return [
        blocks[number] * 2 / (blocks[number - 1] + blocks[number + 1])
        for number in range(1, len(blocks), 2)
    ]


def main() -> None:
    results = {}
    for name, options in SETUPS.items():
        found = ratios(options)
        if hf.is_leader():
            low, middle, high = statistics.quantiles(found, n=4)
            results[name] = {"median": middle, "quartiles": [low, high], "ratios": found}
            print(f"{name:16} x{middle:.4f} ({low:.3f} to {high:.3f} of {len(found)})", flush=True)
    if hf.is_leader():
        default = Path(__file__).with_name("results.json")
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
