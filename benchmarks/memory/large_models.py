"""Memory of ranks that train a model larger than one of them may hold.

mpirun -n 4 python benchmarks/memory/large_models.py --model gpt --gib 3 --limit 4.5
python benchmarks/memory/large_models.py --plain --gib 3 --limit 4.5
"""

import argparse
import os
import pathlib
import threading
import time

import psutil

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["mlp", "gpt"], default="mlp")
parser.add_argument("--gib", type=float, default=0.5, help="size of the weights, float32")
parser.add_argument("--width", type=int, default=2048)
parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--limit", type=float, help="GiB that each process may have (cgroup)")
parser.add_argument("--ordinary", action="store_true", help="build without hyparflow.deferred")
parser.add_argument("--plain", action="store_true", help="train with plain Keras")
parser.add_argument("--gather", action="store_true", help="give all ranks all weights at the end")
parser.add_argument("--save", help="save the model to this file afterwards")
parser.add_argument("--load", help="load the weights from this file first")
wanted = parser.parse_args()

WORDS, LENGTH = 1000, 64


def limit_memory(gib: float) -> None:
    """Put this process into a group of its own (cgroups, version 1)."""
    mounts = psutil.disk_partitions(all=True)
    memory = (m for m in mounts if m.fstype == "cgroup" and "memory" in m.opts.split(","))
    group = pathlib.Path(next(memory).mountpoint) / f"hyparflow-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(int(gib * 2**30)))
    (group / "tasks").write_text(str(os.getpid()))


if wanted.limit:
    limit_memory(wanted.limit)

import contextlib  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402

import hyparflow as hf  # noqa: E402
from hyparflow.model.keras_internals.deferred_variables import is_absent  # noqa: E402


def resident() -> int:
    """MiB of this process."""
    return psutil.Process().memory_info().rss >> 20


def make_mlp() -> keras.Model:
    """Dense layers."""
    width = wanted.width
    count = round(wanted.gib * 2**28 / width**2)
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(count)]
    return keras.Sequential([keras.Input([width]), *layers, keras.layers.Dense(10)])


def make_gpt() -> keras.Model:
    """Transformer blocks that see what came before."""
    width = wanted.width
    count = round(wanted.gib * 2**28 / (12 * width**2))
    tokens = keras.Input([LENGTH], dtype="int32")
    x = keras.layers.Embedding(WORDS, width)(tokens)
    x = x + keras.layers.Embedding(LENGTH, width)(keras.ops.arange(LENGTH))
    for _ in range(count):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(16, width // 16)(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu")(y)
        x = x + keras.layers.Dense(width)(y)
    return keras.Model(tokens, keras.layers.Dense(WORDS)(keras.layers.LayerNormalization()(x)))


def held(variables: list) -> int:
    """MiB of those that have memory."""
    sizes = [np.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables if not is_absent(v)]
    return int(sum(sizes)) >> 20


random = np.random.default_rng(0)
rows = wanted.rows * wanted.steps
if wanted.model == "mlp":
    make = make_mlp
    x, y = random.normal(size=(rows, wanted.width)).astype("float32"), random.integers(0, 10, rows)
else:
    make = make_gpt
    x, y = (random.integers(0, WORDS, (rows, LENGTH)) for _ in range(2))

keras.ops.ones(1) + 1
if not wanted.plain:
    hf.rank()
bare = resident()
keras.utils.set_random_seed(1)
start = time.monotonic()
ordinary = wanted.ordinary or wanted.plain
with contextlib.nullcontext() if ordinary else hf.deferred():
    model = make()
model.compile(
    keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
if wanted.load:
    hf.load_weights(model, wanted.load)
built = resident()
peak = 0
done = threading.Event()


def watch() -> None:
    """Note the peak."""
    global peak
    while not done.wait(0.01):
        peak = max(peak, resident())


threading.Thread(target=watch, daemon=True).start()
seconds: list = []


class Watch(keras.callbacks.Callback):
    """Times steps."""

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        seconds.append(time.monotonic() - self.start)


kept = {"batch_size": wanted.rows, "verbose": 0, "callbacks": [Watch()]}
if wanted.plain:
    history = model.fit(x, y, **kept)
else:
    layout = {"strategy": "model"} if hf.size() > 1 else {}
    history = hf.fit(model, x, y, gather=wanted.gather, **layout, **kept)
whole = time.monotonic() - start
peak_in_fit = peak
if wanted.save:
    hf.parallelize(model, strategy="model").save(wanted.save)
done.set()
weights, slots = held(model.weights), held(list(model.optimizer.variables))
print(
    f"rank {0 if wanted.plain else hf.rank()}: bare {bare} MiB; above it: built {built - bare}, "
    f"peak in fit {peak_in_fit - bare}, peak {peak - bare}; weights {weights}, slots {slots}; "
    f"whole {whole:.1f} s, steps {[round(s, 2) for s in seconds]}; loss {history.history['loss']}",
    flush=True,
)
