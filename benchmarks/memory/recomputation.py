"""Memory and time of ResNet-110 on two ranks, by what is computed again.

Each value of `recompute` has a job of its own, and they take turns in one run, so that a change of
the machine meets all alike::

    python benchmarks/memory/recomputation.py --rounds 2
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("none", "block", "segments")


def child(way: str, depth: int, rows: int, microbatches: int, steps: int) -> None:
    """One rank: train, and print a line of results."""
    sys.path.insert(0, str(ROOT / "examples"))
    sys.setrecursionlimit(10**5)
    import cifar10_resnet
    import keras
    import numpy as np

    import hyparflow as hf

    keras.utils.set_random_seed(1)
    model = cifar10_resnet.build(depth, version=2)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    chance = np.random.default_rng(0)
    x = chance.normal(size=(rows * steps, 32, 32, 3)).astype("float32")
    y = chance.integers(0, 10, rows * steps)
    seconds: list[float] = []

    class Times(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            self.start = time.process_time()

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            seconds.append(time.process_time() - self.start)

    before = time.process_time()
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    history = hf.fit(
        model,
        x,
        y,
        batch_size=rows,
        shuffle=False,
        verbose=0,
        callbacks=[Times()],
        strategy="model",
        num_microbatches=microbatches,
        recompute=None if way == "none" else way,
    )
    result = {
        "rank": hf.rank(),
        "way": way,
        "peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - bare,
        "fit": round(time.process_time() - before, 2),
        "step": round(statistics.median(seconds[1:]), 3) if seconds else None,
        "loss": history.history["loss"][0],
    }
    print("RESULT " + json.dumps(result), flush=True)


def main() -> None:
    """Run the jobs in turns, and print their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mpirun", default=os.environ.get("MPIRUN", "mpirun") + " -n 2")
    parser.add_argument("--child")
    told = parser.parse_args()
    numbers = (told.depth, told.rows, told.microbatches, told.steps)
    if told.child:
        child(told.child, *numbers)
        return
    for turn in range(told.rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            names = ("--depth", "--rows", "--microbatches", "--steps")
            more = [text for pair in zip(names, map(str, numbers), strict=True) for text in pair]
            command = [*told.mpirun.split(), sys.executable, __file__, "--child", way, *more]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for line in sorted(x for x in done.stdout.splitlines() if x.startswith("RESULT ")):
                print(line.removeprefix("RESULT "), flush=True)


if __name__ == "__main__":
    main()
