"""What does not end a job: caught errors, losses that are not numbers, saves by all ranks at once.

python recover.py FOLDER [CASE ...]. FOLDER gets outcomes.json and the files that are saved.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

import hyparflow as hf

WORLD = MPI.COMM_WORLD
FOLDER = pathlib.Path(sys.argv[1])
X, Y = np.random.default_rng(0).normal(size=(2, 32, 4)).astype("float32")
GRID = {"num_partitions": WORLD.size, "num_microbatches": 2}


class DiskFull(Exception):
    """An error of the user's own kind, whose text is not its only argument."""

    def __init__(self, path: str, free: int) -> None:
        super().__init__(f"{path}: {free} bytes free")
        self.free = free


class Raise(keras.callbacks.Callback):
    """Raises after the second batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            raise DiskFull("model.keras", 7)


class Exit(keras.callbacks.Callback):
    """Ends the script after the second batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            sys.exit(5)


class Count(keras.callbacks.Callback):
    """Counts batches."""

    total = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.total += 1


def batches(count: int) -> Iterator[Any]:
    """A stream that breaks off after `count` batches."""
    for start in range(0, count * 8, 8):
        yield X[start : start + 8], Y[start : start + 8]
    raise OSError("the file is damaged")


def make_model() -> Any:
    """The same weights at every call."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def plain_and_parallel() -> list[tuple[Any, Callable[..., Any]]]:
    """A model for plain Keras and one for hyparflow, each with its `fit`."""
    plain, parallel = make_model(), make_model()
    # As a graph, Keras counts the step whose data could not be read.
    plain.run_eagerly = True
    return [(plain, plain.fit), (parallel, lambda **data: hf.fit(parallel, **data, **GRID))]


def caught(fit: Callable[..., Any], **data: Any) -> tuple[str, str]:
    """The type and text of the error that `fit` raises."""
    try:
        fit(**data, verbose=0, shuffle=False)
    except (Exception, SystemExit) as error:
        return type(error).__name__, str(error)
    return "", "no error"


def largest_difference(left: Any, right: Any) -> float:
    """Between the weights and optimizer states of two models."""
    values = [[v.numpy() for v in m.weights + m.optimizer.variables] for m in (left, right)]
    return max(float(np.abs(a - b).max()) for a, b in zip(*values, strict=True))


def catch(make_data: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Catch an error of `fit` that happens between steps, then train again."""
    (plain, plain_fit), (parallel, parallel_fit) = plain_and_parallel()
    for fit in (plain_fit, parallel_fit):  # so that the optimizers have their variables
        fit(x=X, y=Y, batch_size=8, verbose=0, shuffle=False)
    outcome: dict[str, Any] = {
        "plain": caught(plain_fit, **make_data()),
        "parallel": caught(parallel_fit, **make_data()),
    }
    outcome["difference"] = largest_difference(plain, parallel)
    for fit in (plain_fit, parallel_fit):
        fit(x=X, y=Y, batch_size=8, verbose=0, shuffle=False)
    outcome["difference afterwards"] = largest_difference(plain, parallel)
    return outcome


def train_on_nan() -> dict[str, Any]:
    """Train on labels of which one is no number, with and without the callback that minds."""
    y = Y.copy()
    y[9] = np.nan
    outcome = {}
    for name, callbacks in {"go on": [], "stop": [keras.callbacks.TerminateOnNaN()]}.items():
        for kind, (_, fit) in zip(("plain", "parallel"), plain_and_parallel(), strict=True):
            count = Count()
            history = fit(
                x=X,
                y=y,
                batch_size=8,
                epochs=2,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, count],
            )
            steps = WORLD.bcast(count.total)
            outcome[f"{name}, {kind}"] = [str(history.history), history.epoch, steps]
    return outcome


def save() -> None:
    """Let all ranks write the same files at once."""
    model = make_model()
    hf.fit(model, X, Y, batch_size=8, verbose=0, **GRID)
    for _ in range(5):
        WORLD.Barrier()
        model.save(FOLDER / "model.keras")
    WORLD.Barrier()
    model.save_weights(FOLDER / "model.weights.h5")
    hf.parallelize(model, **GRID).save(FOLDER / "parallel.keras")
    if WORLD.rank == 0:
        weights = {str(i): value for i, value in enumerate(model.get_weights())}
        np.savez(FOLDER / "expected.npz", x=X, y=model(X), **weights)
    WORLD.Barrier()


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "callback": lambda: {"x": X, "y": Y, "batch_size": 8, "callbacks": [Raise()]},
    "exit": lambda: {"x": X, "y": Y, "batch_size": 8, "callbacks": [Exit()]},
    "data": lambda: {"x": batches(2)},
    "first batch": lambda: {"x": batches(0)},
}


def main() -> None:
    """Run the cases and write down what each rank found."""
    mine = {name: catch(CASES[name]) for name in sys.argv[2:]} | {"nan": train_on_nan()}
    save()
    everyone = WORLD.gather(mine)
    if WORLD.rank == 0:
        (FOLDER / "outcomes.json").write_text(json.dumps(everyone))


main()
