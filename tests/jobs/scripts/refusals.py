"""Asks for what cannot be and writes what every rank got: python refusals.py FILE.

FILE gets a line of JSON for each case: its name and, per rank, the type and text of the error.
"""

import json
import pathlib
import sys
import unittest.mock
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

import hyparflow as hf

WORLD = MPI.COMM_WORLD
X, Y = np.random.default_rng(0).normal(size=(2, 64, 3))


def dense(*units: int, **kwargs: Any) -> Any:
    """A compiled model with one operation per layer."""
    kinds = {"activation": kwargs.pop("activation", None)}
    stack = [keras.layers.Dense(width, **kinds) for width in units]
    model = keras.Sequential([keras.Input((3,)), *stack])
    settings = {"optimizer": "sgd", "loss": "mse"} | kwargs
    if settings["loss"]:
        model.compile(**settings)
    return model


class Subclassed(keras.Model):
    """A model whose graph Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.layer(x)


def fit(model: Any = None, **kwargs: Any) -> Any:
    """Train with good arguments, but for those given."""
    given = {"x": X, "y": Y, "batch_size": 16, "verbose": 0} | kwargs
    return hf.fit(dense(4, 4, 3) if model is None else model, **given)


def fit_subclassed(strategy: str) -> Any:
    """Train a model that cannot be cut."""
    model = Subclassed()
    model.compile("sgd", "mse")
    return fit(model, strategy=strategy)


def fit_with_keras(version: str) -> Any:
    """Train with a Keras that says that it is of that version."""
    model = dense(4, 4, 3)
    with unittest.mock.patch.object(keras, "__version__", version):
        return fit(model)


# Each rank tries these alone: if a message were needed, it would wait for ever.
ALONE: dict[str, Callable[[], Any]] = {
    "grid": lambda: fit(num_partitions=2, num_replicas=2),
    "operations": lambda: fit(dense(3), num_partitions=2),
    "lpp length": lambda: fit(num_partitions=2, lpp=[1, 1, 1]),
    "lpp sum": lambda: fit(num_partitions=2, lpp=[1, 1]),
    "strategy": lambda: fit(strategy="banana"),
    "schedule": lambda: fit(schedule="banana"),
    "batch": lambda: fit(num_replicas=2, num_microbatches=2, batch_size=3),
    "not compiled": lambda: fit(dense(4, 3, loss=None)),
    "lengths": lambda: fit(y=Y[:-1]),
    "labels": lambda: fit(y=None),
    "subclassed": lambda: fit_subclassed("model"),
    "old Keras": lambda: fit_with_keras("3.11.3"),
}


def either(first: Any, second: Any) -> Any:
    """The second on the last rank, the first on the others."""
    return second if hf.rank() == hf.size() - 1 else first


# What ranks are given differently; they find it out together.
DIFFERENT: dict[str, Callable[[], Any]] = {
    "width": lambda: fit(dense(4, either(4, 5), 3)),
    "activation": lambda: fit(dense(4, 3, activation=either("tanh", "relu"))),
    "learning rate": lambda: fit(dense(4, 3, optimizer=keras.optimizers.SGD(either(0.1, 0.2)))),
    "loss": lambda: fit(dense(4, 3, loss=either("mse", "mae"))),
    "loss setting": lambda: fit(
        dense(4, 3, loss=keras.losses.BinaryCrossentropy(from_logits=either(True, False)))
    ),
    "loss weights": lambda: fit(dense(4, 3, loss_weights=either(1.0, 2.0))),
    "metrics": lambda: fit(dense(4, 3, metrics=either(["mae"], ["mse"]))),
    "batch_size": lambda: fit(batch_size=either(16, 32)),
    "epochs": lambda: fit(epochs=either(1, 2)),
    "num_microbatches": lambda: fit(num_partitions=2, num_microbatches=either(2, 4)),
    "schedule": lambda: fit(num_partitions=2, schedule=either("gpipe", "1f1b")),
    "lpp": lambda: fit(num_partitions=2, lpp=either([1, 2], [2, 1])),
    "strategy": lambda: fit(strategy=either("data", "model")),
    "shuffled data": lambda: fit(x=either(X, X[::-1])),
    "labels": lambda: fit(y=either(Y, -Y)),
    "one row": lambda: fit(y=np.where(np.arange(64)[:, None] == 34, either(0.0, 1.0), Y)),
    "shard": lambda: fit(x=X[: either(64, 32)], y=Y[: either(64, 32)]),
    "method": lambda: either(fit, lambda: hf.evaluate(dense(4, 4, 3), X, Y, batch_size=16))(),
}

FINE: dict[str, Callable[[], Any]] = {
    "subclassed, data": lambda: fit_subclassed("data"),
    "cut": lambda: fit(num_partitions=2),
}


def attempt(call: Callable[[], Any]) -> tuple[str, str] | None:
    """The type and text of the error that `call` raises, or None."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def main(path: pathlib.Path) -> None:
    """Try all cases."""
    rank, size = hf.rank(), hf.size()
    groups = {"alone": ALONE, "different": DIFFERENT, "fine": FINE}
    for group, cases in groups.items():
        for name, call in cases.items():
            outcome = None
            turns = range(size) if group == "alone" else [rank]
            for turn in turns:
                if turn == rank:
                    outcome = attempt(call)
                if group == "alone":
                    WORLD.Barrier()
            outcomes = WORLD.gather(outcome)
            if rank == 0:
                with path.open("a") as file:
                    file.write(json.dumps([group, name, outcomes]) + "\n")


main(pathlib.Path(sys.argv[1]))
