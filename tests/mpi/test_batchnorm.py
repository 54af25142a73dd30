"""BatchNormalization over replicas and micro-batches, against plain Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, differences, grids, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

# With replicas; of 4 ranks 2 x 2, for replicas alone are tested on 2.
GRIDS = [grid for grid in grids(WORLD.size) if grid[1] > 1 and WORLD.size in (2, grid[0] * 2)]
GRIDS = GRIDS or [(1, 1)]
pytestmark = pytest.mark.usefixtures("in_float64")


@keras.saving.register_keras_serializable(package="tests")
class Branches(layers.Layer):
    """Two normalizations inside one layer, one of them called twice."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.left = layers.BatchNormalization(momentum=0.7)
        self.right = layers.BatchNormalization(momentum=0.9, center=False)

    def build(self, shape: Any) -> None:
        self.left.build(shape)
        self.right.build(shape)

    def call(self, x: Any, training: bool | None = None) -> Any:
        left = self.left(x, training=training) + self.right(ops.tanh(x), training=training)
        return self.left(left, training=training)


def images() -> Any:
    """Convolutions, branches, a frozen and a nested normalization."""
    inputs = keras.Input((6, 6, 2))
    x = layers.BatchNormalization(momentum=0.5)(inputs)
    x = layers.Conv2D(3, 3)(x)
    left = layers.BatchNormalization()(x)
    right = layers.BatchNormalization(scale=False)(ops.square(x))
    x = Branches()(layers.Add()([left, right]))
    frozen = layers.BatchNormalization(trainable=False)
    inner = keras.Sequential([layers.Conv2D(4, 2, activation="tanh"), layers.BatchNormalization()])
    x = layers.GlobalAveragePooling2D()(inner(frozen(x)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(1)
    return model, rng.normal(2.0, 3.0, (25, 6, 6, 2)), rng.integers(0, 3, 25)


def small() -> Any:
    """A normalization of the data, whose statistics depend on no other, and one after it."""
    inputs = keras.Input((6, 2))
    x = layers.Dense(4, activation="tanh")(layers.BatchNormalization(momentum=0.5)(inputs))
    x = layers.GlobalAveragePooling1D()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(1)
    return model, rng.normal(2.0, 3.0, (25, 6, 2)), rng.integers(0, 3, 25)


def sequences() -> Any:
    """A mask reaches the normalization; one of its batches has a channel of its own."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.BatchNormalization(momentum=0.6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.BatchNormalization()(layers.Dense(1)(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 9, (25, 7))
    tokens[:, 0] = 1  # no row is masked as a whole
    return model, tokens, rng.integers(0, 3, 25)


def train(build: Callable[[], Any], fit: Callable[..., Any]) -> Outcome:
    keras.utils.set_random_seed(3)
    model, x, y = build()
    optimizer = keras.optimizers.SGD(0.05)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    # 25 rows in batches of 8: the last has one row, fewer than there are replicas.
    history = fit(model, x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x[:9], y[:9]))
    return Outcome(history.history, State.of(model))


def parallel(**options: Any) -> Callable[..., Any]:
    return lambda model, *args, **kwargs: hf.fit(model, *args, **kwargs, **options)


def plain(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model.fit(*args, **kwargs)


@pytest.mark.parametrize("build", [images, pytest.param(sequences, marks=pytest.mark.slow)])
def test_sync_is_what_one_process_sees(build: Callable[[], Any]) -> None:
    expected = on_leader(lambda: train(build, plain))
    for partitions, replicas in GRIDS:
        options = {"num_partitions": partitions, "num_replicas": replicas, "num_microbatches": 1}
        actual = train(build, parallel(**options, batchnorm="sync"))
        require_none(actual.compare(expected), f"{build.__name__} {options}")


def first_statistics(model: Any) -> Any:
    layer = next(x for x in model.layers if isinstance(x, layers.BatchNormalization))
    return np.stack([layer.moving_mean.numpy(), layer.moving_variance.numpy()])


@pytest.mark.on_ranks(1, 2)
@pytest.mark.parametrize("batchnorm", ["deferred", pytest.param("sync", marks=pytest.mark.slow)])
def test_moving_statistics_are_those_of_the_global_batch(batchnorm: str) -> None:
    """The first layer's statistics do not depend on how the data are normalized."""

    def statistics(fit: Callable[..., Any]) -> Any:
        keras.utils.set_random_seed(3)
        model, x, y = small()
        model.compile("sgd", "sparse_categorical_crossentropy")
        fit(model, x, y, batch_size=8, epochs=2, verbose=0)
        return first_statistics(model)

    expected = on_leader(lambda: statistics(plain))
    for partitions, replicas in GRIDS:
        options = {"num_partitions": partitions, "num_replicas": replicas, "num_microbatches": 2}
        actual = statistics(parallel(**options, batchnorm=batchnorm))
        require_none(differences("statistics", actual, expected, 1e-10), str(options))
    if WORLD.size > 1 and batchnorm == "deferred":  # by themselves, layers see micro-batches
        options = {"num_partitions": 1, "num_replicas": WORLD.size, "num_microbatches": 2}
        local = statistics(parallel(**options, batchnorm="local"))
        assert differences("statistics", local, expected, 1e-3)


@pytest.mark.on_ranks(1, 2)
def test_a_layers_own_wish_to_be_synchronized_is_followed() -> None:
    def statistics(fit: Callable[..., Any]) -> Any:
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((4,)), layers.BatchNormalization(synchronized=True), layers.Dense(2)]
        )
        model.compile("adam", "mse")
        rng = np.random.default_rng(0)
        fit(model, rng.normal(size=(24, 4)), rng.normal(size=(24, 2)), batch_size=8, verbose=0)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    expected = on_leader(lambda: statistics(plain))
    actual = statistics(parallel(strategy="data"))
    require_none(differences("weights", actual, expected, 1e-10), "synchronized=True")


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="`batchnorm` must be one of 'local', 'deferred', 'sync'"):
        hf.parallelize(small()[0], batchnorm="global")
