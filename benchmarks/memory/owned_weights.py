"""Memory of ranks that train an MLP of eight 4096 x 4096 layers, above a bare import.

mpirun -n 2 python benchmarks/memory/owned_weights.py [--deferred] [--leave]
"""

import argparse
import os
import resource
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--deferred", action="store_true", help="build with hyparflow.deferred")
parser.add_argument("--leave", action="store_true", help="train with gather=False")
parser.add_argument("--width", type=int, default=4096)
wanted = parser.parse_args()

import contextlib  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402

import hyparflow as hf  # noqa: E402


def resident() -> int:
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def build() -> keras.Model:
    layers = [keras.layers.Dense(wanted.width, activation="relu") for _ in range(8)]
    return keras.Sequential([keras.Input([wanted.width]), *layers, keras.layers.Dense(10)])


keras.ops.ones(1) + 1
hf.rank()
bare = resident()
keras.utils.set_random_seed(1)
with hf.deferred() if wanted.deferred else contextlib.nullcontext():
    model = build()
model.compile(
    keras.optimizers.SGD(0.001, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True)
)
built = resident()
peaks = [0]
done = threading.Event()


def watch() -> None:
    while not done.wait(0.01):
        peaks[0] = max(peaks[0], resident())


threading.Thread(target=watch, daemon=True).start()
random = np.random.default_rng(0)
x, y = random.normal(size=(64, wanted.width)).astype("float32"), random.integers(0, 10, 64)
more = {"gather": False} if wanted.leave else {}
start = time.monotonic()
history = hf.fit(
    model, x, y, batch_size=32, epochs=2, verbose=0, strategy="model", num_microbatches=2, **more
)
seconds = time.monotonic() - start
done.set()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(
    f"rank {hf.rank()} of {hf.size()}: built {built - bare} MiB, peak in fit {peaks[0] - bare}, "
    f"peak {peak - bare}, after {resident() - bare}; {seconds:.1f} s; "
    f"loss {history.history['loss']}",
    flush=True,
)
