"""Memory and time of replicas whose optimizer state is sharded, and of such that hold all of it.

mpirun -n 2 python -m mpi4py benchmarks/memory/sharded_optimizer.py --model mlp --optimizer adam

Without --only it trains two models in turns, with and without `shard_optimizer`, and prints each
rank's seconds of a step. With --only it trains one, and prints its memory in MiB above a bare
import. With --whole both are sharded, one of them by whole weights.
"""

import argparse
import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["mlp", "three", "gpt", "resnet"], default="mlp")
parser.add_argument("--optimizer", choices=["momentum", "adam"], default="adam")
parser.add_argument("--only", choices=["with", "without"])
parser.add_argument("--whole", action="store_true", help="compare with whole weights")
parser.add_argument("--turns", type=int, default=4)
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--width", type=int, default=2048)
parser.add_argument("--depth", type=int, default=110)
wanted = parser.parse_args()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import hyparflow as hf  # noqa: E402
from hyparflow.engine.weights import dealt_out  # noqa: E402
from hyparflow.engine.weights.holdings import bytes_here  # noqa: E402
from hyparflow.training.steps import TrainingSteps  # noqa: E402


def resident() -> int:
    """MiB of this process."""
    return psutil.Process().memory_info().rss >> 20


def mlp(depth: int = 8) -> keras.Model:
    layers = [keras.layers.Dense(wanted.width, activation="relu") for _ in range(depth)]
    return keras.Sequential([keras.Input([wanted.width]), *layers, keras.layers.Dense(10)])


def gpt() -> keras.Model:
    """Two blocks of width 128; the table of 8192 words has about 70 % of all weights."""
    tokens = keras.Input([64], dtype="int32")
    x = keras.layers.Embedding(8192, 128)(tokens)
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.MultiHeadAttention(4, 32)(y, y, use_causal_mask=True)
        x = keras.layers.Add()([x, y])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(128)(keras.layers.Dense(512, activation="gelu")(y))
        x = keras.layers.Add()([x, y])
    return keras.Model(tokens, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x)))


def resnet() -> keras.Model:
    x = inputs = keras.Input([32, 32, 3])
    x = keras.layers.Conv2D(16, 3, padding="same")(x)
    for stage, width in enumerate((16, 32, 64)):
        for block in range((wanted.depth - 2) // 6):
            stride = 2 if stage and not block else 1
            y = keras.layers.Conv2D(width, 3, stride, "same", use_bias=False)(x)
            y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
            y = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
            y = keras.layers.BatchNormalization()(y)
            if x.shape != y.shape:
                x = keras.layers.Conv2D(width, 1, stride)(x)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    makers = {"mlp": mlp, "three": lambda: mlp(3), "gpt": gpt, "resnet": resnet}
    model = makers[wanted.model]()
    if wanted.optimizer == "adam":
        optimizer: keras.Optimizer = keras.optimizers.Adam(1e-4)
    else:
        optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    return model


times: list[tuple[float, float]] = []
step = TrainingSteps.__call__


def timed(self: TrainingSteps, command: object) -> None:
    start, cpu = time.monotonic(), time.process_time()
    step(self, command)  # type: ignore[arg-type]
    times.append((time.monotonic() - start, time.process_time() - cpu))


TrainingSteps.__call__ = timed  # type: ignore[method-assign]


def train(model: keras.Model, sharded: bool, steps: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each step."""
    random = np.random.default_rng(0)
    rows = wanted.batch * steps
    shape = [32, 32, 3] if wanted.model == "resnet" else [wanted.width]
    x, y = random.normal(size=(rows, *shape)).astype("float32"), random.integers(0, 10, rows)
    if wanted.model == "gpt":
        x = random.integers(0, 8192, (rows, 64))
    times.clear()
    more = {"shard_optimizer": True} if sharded or wanted.whole else {}
    hf.fit(model, x, y, batch_size=wanted.batch, verbose=0, strategy="data", gather=False, **more)
    return list(times)


keras.ops.ones(1) + 1
hf.rank()
bare = resident()


def held(model: keras.Model) -> int:
    """KiB of slots that have memory."""
    return sum(bytes_here(v) for v in model.optimizer.variables if len(v.shape)) >> 10


@contextlib.contextmanager
def dividing(divided: bool) -> Iterator[None]:
    """While open, weights may be divided, or not: hyparflow itself has no option for that."""
    usual = dealt_out.divides
    dealt_out.divides = lambda optimizer: divided and usual(optimizer)
    try:
        yield
    finally:
        dealt_out.divides = usual


if wanted.only:
    model = build()
    train(model, wanted.only == "with", 4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"rank {hf.rank()} {wanted.only}: slots {held(model)} KiB, peak {peak - bare} MiB",
        flush=True,
    )
else:
    names = ("whole", "divided") if wanted.whole else ("without", "with")
    models = {sharded: build() for sharded in (False, True)}

    def one(sharded: bool, steps: int) -> list[tuple[float, float]]:
        with dividing(sharded or not wanted.whole):
            return train(models[sharded], sharded, steps)

    start = time.monotonic()
    for sharded, model in models.items():
        one(sharded, 2)
        seconds = time.monotonic() - start
        print(
            f"rank {hf.rank()} {names[sharded]}: first call {seconds:.1f} s, "
            f"slots {held(model)} KiB",
            flush=True,
        )
        start = time.monotonic()
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(wanted.turns):
        for sharded in models:
            found[sharded] += one(sharded, wanted.steps)[1:]
    for what, name in enumerate(("wall", "CPU")):
        off, on = (statistics.median(t[what] for t in found[sharded]) for sharded in (False, True))
        print(
            f"rank {hf.rank()} {name}: {1000 * off:.1f} ms {names[0]}, {1000 * on:.1f} {names[1]}, "
            f"ratio {on / off:.3f}",
            flush=True,
        )
