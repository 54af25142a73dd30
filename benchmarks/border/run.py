"""What does each part of the surgery in hyparflow/engine/compiled gain?

    mpirun -n 1 python benchmarks/border/run.py resnet20
    mpirun -n 2 python benchmarks/border/run.py dense

One rank trains four stages, two ranks one each. Trainings with all parts, without one of them and
without any (`HYPARFLOW_COMPILED=plain`) take turns in one process. For each, rank 0 prints how
much longer a step takes than with all parts: the median over turns of the ratio to the training
with all parts in the same turn, in processor time of all ranks, which other jobs on the machine
disturb least, and in time that passed.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
from mpi4py import MPI

import hyparflow as hf
from hyparflow.engine.compiled import choice, subgraph
from hyparflow.engine.compiled.plain import Plain
from hyparflow.engine.compiled.surgery import Surgery

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models  # noqa: E402
import samples  # noqa: E402

TURNS, STEPS = 7, 8
WORLD = MPI.COMM_WORLD
ONE_RANK = {"schedule": "interleaved", "stages_per_partition": 4}


class WithoutDirectCall(Surgery):
    """Compiled functions are called as TensorFlow means it."""

    call = Plain.call


class WithoutHiddenVariable(Surgery):
    """Backwards return gradients, which are added up afterwards."""

    adds = False


class WithoutSplit(Surgery):
    """A tape makes the backward, which cannot add gradients up either."""

    adds = False

    def pair(self, *args: Any) -> Any:
        return Plain().pair(*args)


class WithoutMemory(Surgery):
    """What arrives is copied."""

    memory = Plain.memory


WAYS = {
    "all parts": Surgery,
    "without direct_call": WithoutDirectCall,
    "without hidden_variable": WithoutHiddenVariable,
    "without split_function, hidden_variable": WithoutSplit,
    "without tensor_memory": WithoutMemory,
    "plain": Plain,
}


def dense() -> Any:
    """Thirty-two small layers, so that calls weigh more than what they compute."""
    body = [keras.layers.Dense(64, "relu") for _ in range(31)]
    model = keras.Sequential([keras.Input((64,)), *body, keras.layers.Dense(10, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    """Within it, hyparflow compiles in this way."""
    choice._choice = choice.Choice(WAYS[name](), [], agreed=True)
    with contextlib.ExitStack() as stack:
        if name == "without direct_call":
            usual = lambda concrete: lambda *tensors: concrete(*tensors) or []  # noqa: E731
            stack.enter_context(mock.patch.object(subgraph, "flat_call", usual))
            stack.enter_context(mock.patch.object(subgraph, "packed_call", lambda f: f))
        yield


def seconds(fit: Any) -> tuple[float, float]:
    """A step's processor time on all ranks, and the time that passed."""
    processor, start = time.process_time(), time.perf_counter()
    fit()
    passed = time.perf_counter() - start
    return WORLD.allreduce(time.process_time() - processor) / STEPS, passed / STEPS


def fits(kind: str, name: str) -> Any:
    """What trains for so many steps."""
    keras.utils.set_random_seed(0)
    rows = 64
    if kind == "dense":
        random = np.random.default_rng(0)
        x = random.normal(size=(STEPS * rows, 64)).astype("float32")
        model, y = dense(), random.integers(0, 10, STEPS * rows)
    else:
        model, (x, y) = models.build(kind), samples.data(kind, STEPS * rows)
    layout = ONE_RANK if WORLD.size == 1 else {"schedule": "1f1b"}
    model = hf.parallelize(
        model, strategy="model", num_partitions=WORLD.size, num_microbatches=4, **layout
    )

    def fit() -> None:
        with way(name):
            model.fit(x, y, batch_size=rows, epochs=1, verbose=0, shuffle=False)

    return fit


def main() -> None:
    kind = sys.argv[1]
    ways = {name: fits(kind, name) for name in WAYS}
    for fit in ways.values():
        fit()  # compiles
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(TURNS):
        order = list(ways) if turn % 2 else list(ways)[::-1]
        for name in order:
            taken[name].append(seconds(ways[name]))
    if WORLD.rank:
        return
    whole = taken["all parts"]
    for name, found in taken.items():
        processor, passed = (
            statistics.median(one[i] / other[i] for one, other in zip(found, whole, strict=True))
            for i in (0, 1)
        )
        milliseconds = 1e3 * statistics.median(one[0] for one in found)
        print(
            f"{kind} x{WORLD.size}, {name:40} {milliseconds:7.1f} ms of processor time per step, "
            f"x{processor:.3f}; passed x{passed:.3f}",
            flush=True,
        )


main()
