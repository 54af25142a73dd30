"""What does the progress bar cost? Training with verbose=1 against verbose=0.

    mpirun -n 2 python benchmarks/progress_bar/run.py

A model of two small layers, so that a step takes a few milliseconds and the bar has its worst case.
The four trainings (hyparflow and plain Keras, with and without the bar) take turns; the medians of
the times of a step and their ratio are printed by rank 0, and written to results.json beside this
file or to the path given.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

import hyparflow as hf

STEPS, TURNS = 300, 7


def build() -> Any:
    """A compiled model of two layers, which two ranks can hold."""
    model = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def seconds_per_step(fit: Any, verbose: int) -> float:
    """The time of one step of an epoch."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(STEPS * 16, 32)), random.integers(0, 10, STEPS * 16)
    start = time.perf_counter()
    fit(x.astype("float32"), y, batch_size=16, epochs=1, verbose=verbose)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    world = MPI.COMM_WORLD
    size, leader = world.size, world.rank == 0
    fits = {"plain Keras": build().fit}
    for strategy in ("data", "model") if size == 2 else ("data",):
        fits[f"hyparflow, {strategy} x{size}"] = hf.parallelize(build(), strategy=strategy).fit
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(TURNS + 1):  # the first compiles
        for name, fit in fits.items():
            for verbose in (0, 1):
                if leader or name != "plain Keras":
                    taken = seconds_per_step(fit, verbose)
                    if turn:
                        times.setdefault((name, verbose), []).append(taken)
                wait_for_all(world)
    if leader:
        report(times)


def wait_for_all(world: Any) -> None:
    """A barrier that leaves the cores to those who still compute."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def report(times: dict[tuple[str, int], list[float]]) -> None:
    results = {}
    for name in dict.fromkeys(name for name, _ in times):
        without, with_bar = (statistics.median(times[name, verbose]) * 1e3 for verbose in (0, 1))
        results[name] = {"without_ms": without, "with_ms": with_bar, "ratio": with_bar / without}
        print(
            f"{name:24} {without:6.2f} ms without, {with_bar:6.2f} ms with the bar, per step: "
            f"x{with_bar / without:.3f}"
        )
    default = Path(__file__).with_name("results.json")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
