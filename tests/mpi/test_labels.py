"""Losses and metrics that join rows only at some labels: refused alike on all ranks, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD
from keras import layers, ops

import hyparflow as hf

pytestmark = pytest.mark.on_ranks(2)


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


random = np.random.default_rng(0)
X = random.normal(size=(16, 6)).astype("float32")
Y = random.normal(size=(16, 2)).astype("float32")
MISSING = np.where(random.random(Y.shape) > 0.6, np.float32(-77.25), Y)


def masked(mark: Any) -> Callable[[Any, Any], Any]:
    """A mean over the labels that are not missing."""

    def loss(y: Any, p: Any) -> Any:
        there = ops.cast(ops.not_equal(y, mark()), "float32")
        return ops.sum(there * ops.square(y - p)) / ops.sum(there)

    return loss


def rows_of(y: Any, p: Any) -> Any:
    """As many numbers as rows, whatever the labels."""
    there = ops.cast(ops.not_equal(y, -77.25), "float32")
    return ops.sum(there * ops.square(y - p), -1) / ops.maximum(ops.sum(there, -1), 1)


# No graph has the mark as a constant: only the user's labels tell of it.
MARK = tf.Variable(-77.25)
HIDDEN = masked(lambda: ops.convert_to_tensor(MARK))
KNOWN = masked(lambda: -77.25)


def batches() -> Any:
    for start in range(0, 16, 8):
        yield X[start : start + 8], MISSING[start : start + 8]


class Batches(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
    """Two batches."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return list(batches())[index]


def whole() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, MISSING))


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": lambda: {"x": X, "y": MISSING, "batch_size": 8},
    "dataset": lambda: {"x": whole().batch(8)},
    "dataset of full batches": lambda: {"x": whole().batch(8, drop_remainder=True)},
    "generator": lambda: {"x": batches(), "steps_per_epoch": 2},
    "PyDataset": lambda: {"x": Batches()},
    "shards": lambda: {"x": whole().batch(4), "sharded_data": True},
    "one shard": lambda: {
        "x": tf.data.Dataset.from_tensor_slices((X, MISSING if WORLD.rank == 1 else Y)).batch(4),
        "sharded_data": True,
    },
}


def fitted(loss: Any, metrics: list[Any], data: dict[str, Any], fit: Any = None) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    model.compile("sgd", loss, metrics=metrics)
    if fit is None:
        return hf.fit(model, **data, epochs=1, verbose=0, strategy="data")
    return model.fit(**data, epochs=1, verbose=0)


# Whatever the loss or the metric, labels come from the data in the same way.
SOME = [name if name in ("arrays", "generator", "one shard") else slow(name) for name in DATA]


@pytest.mark.parametrize("kind", DATA)
def test_a_mean_over_labels_that_are_there(kind: str) -> None:
    with pytest.raises(ValueError, match="must not depend on other rows"):
        fitted(HIDDEN, [], DATA[kind]())


@pytest.mark.parametrize("kind", SOME)
def test_a_mean_over_labels_that_the_code_marks(kind: str) -> None:
    with pytest.raises(ValueError, match="must not depend on other rows"):
        fitted(KNOWN, [], DATA[kind]())


@pytest.mark.parametrize("kind", SOME)
def test_a_metric(kind: str) -> None:
    with pytest.raises(ValueError, match=r"sums and counts of rows \(metrics \['loss'\]\)"):
        fitted(rows_of, [HIDDEN], DATA[kind]())


@pytest.mark.parametrize("kind", [name for name in DATA if "shard" not in name])
def test_nothing_is_read_twice(kind: str) -> None:
    """What the trial looks at is trained on as in plain Keras."""
    found = fitted(rows_of, ["mae"], DATA[kind]() | {"shuffle": False})
    plain = fitted(rows_of, ["mae"], DATA[kind]() | {"shuffle": False}, fit="plain")
    for name, values in plain.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-5)


@pytest.mark.parametrize("kind", ["arrays", "generator"])
def test_micro_batches_of_a_pipeline(kind: str) -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Dense(2)])
    model.compile("sgd", HIDDEN)
    with pytest.raises(ValueError, match="must not depend on other rows"):
        hf.fit(model, **DATA[kind](), verbose=0, strategy="model", num_microbatches=2)
