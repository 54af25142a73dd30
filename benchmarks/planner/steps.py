"""One job of the benchmark: trains by each of several plans and writes what it took.

    mpirun -n RANKS python benchmarks/planner/steps.py MODEL JOB.json OUTPUT.json

JOB.json holds the batch size, the steps, how often to take turns, and one set of arguments of
`hyparflow.fit` per entry. The entries take turns, so that drift of the machine meets all of them.
"""

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import keras
import psutil
from mpi4py import MPI

import hyparflow as hf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import build, data


class Clock(keras.callbacks.Callback):
    """Notes how long each step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class Peak:
    """The largest resident memory of this process while open, in bytes."""

    def __enter__(self) -> "Peak":
        self.value, self._open = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while self._open:
            self.value = max(self.value, process.memory_info().rss)
            time.sleep(0.004)

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()


def main() -> None:
    name, job_path, output = sys.argv[1:]
    job = json.loads(Path(job_path).read_text())
    world = MPI.COMM_WORLD
    baseline = psutil.Process().memory_info().rss
    model = build(name)
    x, y = data(name, job["batch_size"] * job["steps"])
    seconds: list[list[float]] = [[] for _ in job["entries"]]
    peaks = [0 for _ in job["entries"]]
    for turn in range(job["turns"] + 1):
        for number, arguments in enumerate(job["entries"]):
            steps = job["steps"] if turn else 2  # the first turn compiles
            rows = steps * job["batch_size"]
            clock = Clock()
            with Peak() as peak:
                hf.fit(
                    model, x[:rows], y[:rows], batch_size=job["batch_size"], verbose=0,
                    callbacks=[clock], shuffle=False, **arguments,
                )  # fmt: skip
            if turn:
                seconds[number] += clock.seconds
            else:  # memory that is given back may stay with the process: entries start small
                peaks[number] = peak.value - baseline
    everyone = world.gather(peaks)
    if world.rank == 0:
        result = [
            {"seconds": statistics.median(times), "peaks": [rank[n] for rank in everyone]}
            for n, times in enumerate(seconds)
        ]
        Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
