"""Kinds of data: the samples of each step are those of plain Keras."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from compatibility.rows import refused, works
from compatibility.runs import Runs, arrays, batches, classifier, one_hot

DATA = "Data"


def reading(make: Callable[[], dict[str, Any]], **arguments: Any) -> Callable[[Runs], None]:
    """A check that `fit` with the data of `make` sees what plain Keras sees.

    Plain SGD: with momentum or without, a step on other samples would leave other weights.
    """

    def train(run: Any) -> Any:
        model = classifier(optimizer="sgd", weighted_metrics=["accuracy"])
        run.fit(model, **({"epochs": 2} | arguments | make()))
        return model

    return lambda runs: runs.compare(train)


def dataset(rows: int = 45) -> Any:
    """A dataset that shuffles with a seed, with sample weights; its last batch is ragged."""
    x, y = arrays(rows)
    data = tf.data.Dataset.from_tensor_slices((x, y, np.linspace(0, 2, rows)))
    return data.shuffle(20, seed=3).batch(10)


class Batches(keras.utils.PyDataset):
    """The data in batches of ten."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        x, y = arrays()
        rows = slice(10 * index, 10 * index + 10)
        return x[rows], y[rows], np.ones(len(x[rows]))


works(DATA, "NumPy arrays")(reading(lambda: {"x": arrays()[0], "y": arrays()[1], "batch_size": 20}))
works(DATA, "TensorFlow tensors")(
    reading(
        lambda: {"x": tf.constant(arrays()[0]), "y": tf.constant(arrays()[1]), "batch_size": 20}
    )
)


@works(DATA, "pandas", note="DataFrame and Series")
def check_pandas(runs: Runs) -> None:
    pandas = pytest.importorskip("pandas")
    x, y = arrays()
    data = {"x": pandas.DataFrame(x), "y": pandas.Series(y), "batch_size": 20}
    reading(lambda: data)(runs)


works(DATA, "tf.data.Dataset", "sample weights in a dataset", "ragged last batch")(
    reading(lambda: {"x": dataset(), "validation_data": dataset(19)})
)
works(DATA, "an infinite dataset")(reading(lambda: {"x": dataset().repeat(), "steps_per_epoch": 3}))


@works(DATA, "a dataset of unknown length", note="plain Keras counts too many iterations")
def check_unknown_length(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = classifier(optimizer="sgd", weighted_metrics=["accuracy"])
        history = run.fit(model, dataset().filter(lambda x, y, weight: True), epochs=2).history
        # Keras adds to the optimizer's count where it finds that an epoch has ended.
        assert run.is_plain or model.optimizer.iterations == 10
        return None, [history, model.get_weights()]

    runs.compare(train)


works(DATA, "keras.utils.PyDataset")(reading(lambda: {"x": Batches(), "shuffle": False}))
works(DATA, "keras.utils.PyDataset with workers")(
    reading(lambda: {"x": Batches(workers=2, use_multiprocessing=False), "shuffle": False})
)
works(DATA, "a generator")(reading(lambda: {"x": batches(times=2), "steps_per_epoch": 5}))


def mapped(kind: str) -> dict[str, Any]:
    """The features in a memory-mapped file."""
    x, y = arrays()
    path = Path(tempfile.mkdtemp()) / "x.npy"
    np.save(path, x.astype(kind))
    return {"x": np.load(path, mmap_mode="r"), "y": y, "batch_size": 20}


works(DATA, "a memory-mapped array")(reading(lambda: mapped("float64")))


def nested(run: Any, structure: str) -> Any:
    """Train a model whose inputs and targets have this structure."""
    first, second = keras.Input((5,), name="first"), keras.Input((1,), name="second")
    x = layers.Concatenate()([layers.Dense(6, activation="tanh")(first), second])
    x = layers.Dense(6, activation="tanh")(x)
    a, b = layers.Dense(3, name="a")(x), layers.Dense(3, name="b")(layers.Dense(4)(x))
    features, numbers = arrays()[0], np.linspace(-1, 1, 45)[:, None]
    y = one_hot()
    inputs, outputs, data, labels = {
        "dict": ({"first": first, "second": second}, {"a": a, "b": b}, None, {"a": y, "b": 1 - y}),
        "list": ([first, second], [a, b], [features, numbers], [y, 1 - y]),
        "tuple": ((first, second), (a, b), (features, numbers), (y, 1 - y)),
        "nested": (
            {"deep": [first], "flat": second},
            {"a": a, "b": b},
            {"deep": [features], "flat": numbers},
            {"a": y, "b": 1 - y},
        ),
    }[structure]
    data = {"first": features, "second": numbers} if data is None else data
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    run.fit(model, data, labels, batch_size=20, epochs=2)
    return model, run.predict(model, data)


for structure in ("dict", "list", "tuple", "nested"):
    name = f"{structure} inputs and targets"
    works(DATA, name)(
        lambda runs, structure=structure: runs.compare(lambda run: nested(run, structure))
    )


@works(DATA, "batches of other lengths", note="sequences of one length per batch")
def check_lengths(runs: Runs) -> None:
    def sequences() -> Any:
        random = np.random.default_rng(0)
        for length in (7, 3, 5, 7, 4, 3):
            yield random.integers(1, 9, (8, length)), random.integers(0, 3, 8)

    def train(run: Any) -> Any:
        inputs = keras.Input((None,), dtype="int32")
        x = layers.Embedding(9, 4)(inputs)
        x = layers.Dense(5, activation="tanh")(layers.Conv1D(4, 2, padding="same")(x))
        outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "sparse_categorical_crossentropy")
        run.fit(model, sequences(), steps_per_epoch=3, epochs=2)
        return model

    runs.compare(train)


class Seen(keras.metrics.Metric):
    """Adds up a power of two for each row, so that its sum tells which rows were seen."""

    def __init__(self) -> None:
        super().__init__(name="seen")
        self.total = self.add_variable((), initializer="zeros", name="total")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(ops.sum(ops.cast(2.0, "float64") ** ops.cast(y_true, "float64")))

    def result(self) -> Any:
        return self.total.value


@works(DATA, "a dataset shuffled without a seed", note="no sample is lost, none is seen twice")
def check_unseeded(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = keras.Sequential([keras.Input((1,)), layers.Dense(4), layers.Dense(1)])
        model.compile("sgd", "mse", metrics=[Seen()])
        rows = np.arange(40.0)[:, None]
        data = tf.data.Dataset.from_tensor_slices((rows / 40, rows)).shuffle(40).batch(8)
        seen = run.fit(model, data).history["seen"]
        assert seen == [2.0**40 - 1]
        return None, seen

    runs.compare(train)


def refused_rows(rows: Any) -> Callable[[Runs], None]:
    """A check that a dataset of these rows is refused."""

    def train(run: Any) -> None:
        data = tf.data.Dataset.from_tensor_slices((rows, [0, 1])).batch(2)
        run.fit(classifier(), data)

    return lambda runs: runs.refuse(train, "data must be dense arrays of numbers")


refused(DATA, "ragged tensors", note="pad them first")(
    refused_rows(tf.ragged.constant([[[0.0] * 5] * 2, [[0.0] * 5]]))
)
refused(DATA, "strings", note="turn them into numbers first")(refused_rows([["a"], ["b"]]))


@works(DATA, "sparse tensors", "scipy.sparse matrices", note="made dense, batch by batch")
def check_sparse(runs: Runs) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    x = np.where(arrays()[0] > 0, arrays()[0], 0)
    y = arrays()[1]
    for sparse in (tf.sparse.from_dense(x), scipy.csr_matrix(x)):
        reading(lambda sparse=sparse: {"x": sparse, "y": y, "batch_size": 20})(runs)
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y))
    reading(lambda: {"x": data.batch(20)})(runs)


def sharded(run: Any, kind: str, *data: np.ndarray) -> dict[str, Any]:
    """Arguments of `fit`: a stream of each replica's own, or plain Keras's of the same steps."""
    data = data or (*arrays(61), np.linspace(0, 2, 61))
    # The first replica's batches are larger; the second has one more, of one row.
    parts = [[(0, 10), (16, 26), (32, 42)], [(10, 16), (26, 32), (42, 48), (48, 49)]]

    def rows(replica: int) -> list[np.ndarray]:
        times = 2 if kind == "generator" else 1
        return [np.arange(*bounds) for bounds in parts[replica] * times]

    def both() -> list[np.ndarray]:
        steps = itertools.zip_longest(rows(0), rows(1), fillvalue=np.arange(0))
        return [np.concatenate(step) for step in steps]

    replicas, replica = (1, 0) if run.is_plain else run.shard()
    mine = both() if replicas == 1 else rows(replica)

    def batches() -> Any:
        for chosen in mine:
            yield tuple(array[chosen] for array in data)

    if kind == "generator":
        return {"x": batches(), "steps_per_epoch": 4, "epochs": 2}
    types = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in data)
    stream = tf.data.Dataset.from_generator(batches, output_signature=types)
    return {"x": stream, "validation_data": stream, "epochs": 2}


@works(
    DATA,
    "a stream that is already sharded",
    note="`sharded_data=True`: each replica reads its own, and a step takes a batch of each; "
    "`predict` returns the rows in this order",
)
def check_sharded(runs: Runs) -> None:
    def train(run: Any, kind: str) -> Any:
        model = classifier(optimizer="sgd", weighted_metrics=["accuracy"])
        options = {} if run.is_plain else {"sharded_data": True}
        data = sharded(run, kind)
        history = run.fit(model, **data, **options).history
        predictions = run.predict(model, data["x"], **options) if kind == "dataset" else None
        # As for all data of unknown length, Keras counts an iteration where an epoch ends.
        return None, [history, model.get_weights(), predictions]

    for kind in ("dataset", "generator"):
        runs.compare(lambda run, kind=kind: train(run, kind))


@works(DATA, "a sharded stream of sequences under a mask", note="weighed over all replicas")
def check_sharded_masks(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inputs = keras.Input((4,), dtype="int32")
        hidden = layers.Embedding(9, 4, mask_zero=True)(inputs)
        hidden = layers.BatchNormalization(synchronized=True)(layers.Dense(5)(hidden))
        model = keras.Model(inputs, layers.Dense(3)(layers.Dense(5, activation="tanh")(hidden)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, weighted_metrics=["accuracy"])
        random = np.random.default_rng(0)
        x, y = random.integers(0, 9, (61, 4)), random.integers(0, 3, (61, 4))
        given = sharded(run, "dataset", x, y, np.ones((61, 4)))
        options = {} if run.is_plain else {"sharded_data": True, "num_microbatches": 1}
        run = run if run.is_plain else type(run)(run.options | options)
        return None, [run.fit(model, **given).history, model.get_weights()]

    runs.compare(train)
