"""Tables that all samples look up in common, or each by itself, as plain Keras has them.

Adam squares the values of a sparse gradient as they come: what one process looks up once for all
samples must not come once for each part of a batch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

pytestmark = [
    pytest.mark.skipif(WORLD.size == 1, reason="one rank has no parts to join"),
    pytest.mark.usefixtures("in_float64"),
]
LENGTH, VOCABULARY, WIDTH = 4, 9, 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"strategy": "data"},
    "parts": {"strategy": "data", "num_microbatches": 2},
    "gpipe": {"strategy": "model", "schedule": "gpipe", "num_microbatches": 2},
    "zero-bubble": {"strategy": "model", "schedule": "zero-bubble", "num_microbatches": 4},
    "interleaved": {
        **{"strategy": "model", "schedule": "interleaved"},
        **{"stages_per_partition": 2, "num_microbatches": 2},
    },
    "stages of replicas": {
        **{"num_partitions": 1, "num_replicas": 2, "schedule": "interleaved"},
        **{"stages_per_partition": 2, "num_microbatches": 2},
    },
}
if WORLD.size > 2:
    hybrid = {"num_partitions": 2, "num_replicas": WORLD.size // 2}
    LAYOUTS = {
        "hybrid": {"strategy": "hybrid", "num_microbatches": 2, **hybrid},
        "one part": {"strategy": "hybrid", "num_microbatches": 1, **hybrid},
    }


class Places(layers.Layer):
    """Adds a row of a table to each place of a sequence, the same for all samples."""

    def build(self, shape: Any) -> None:
        self.table = layers.Embedding(LENGTH, shape[-1], name="table")
        self.table.build(None)
        super().build(shape)

    def rows(self, x: Any) -> Any:
        return ops.arange(ops.shape(x)[1])

    def call(self, x: Any) -> Any:
        return x + self.table(self.rows(x))


class Untraceable(Places):
    """Asks for values, which only a call on data has."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x: Any) -> Any:
        self.largest = float(x.numpy().max())
        return super().call(x)


class PlacesInUse(Places):
    """Only those up to the last that is not padded in any sample, as Python finds out."""

    def rows(self, x: Any) -> Any:
        if not hasattr(x, "numpy"):
            return super().rows(x)
        self.longest = 1 + int(np.max(np.nonzero(np.any(x.numpy() != 0, (0, 2)))))
        return ops.arange(self.longest)

    def call(self, x: Any) -> Any:
        rows = self.table(self.rows(x))
        rows = ops.pad(rows, [(0, LENGTH - rows.shape[0]), (0, 0)])
        return x + rows * ops.cast(ops.not_equal(x, 0), x.dtype)


class Kinds(Places):
    """Adds a row for each kind of number among the values: as many rows as there are kinds."""

    def call(self, x: Any) -> Any:
        kinds, which = tf.unique(tf.reshape(ops.cast(x[..., 0] > 0, "int32"), [-1]))
        return x + ops.reshape(ops.take(self.table(kinds), which, axis=0), ops.shape(x))


class InTurns(Places):
    """Each sample's own rows if the first value of a batch is positive, else common ones."""

    def rows(self, x: Any) -> Any:
        places = super().rows(x)
        if hasattr(x, "numpy") and x.numpy()[0, 0, 0] > 0:
            return ops.tile(places[None], (ops.shape(x)[0], 1))
        return places


class Counting(Places):
    """Changes all that a call may change beside."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.calls = 0

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.drawn = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.hidden = tf.Variable(0.0, trainable=False)

    def call(self, x: Any) -> Any:
        if hasattr(x, "numpy"):
            self.calls += 1
            self.hidden.assign_add(np.random.random())
            self.drawn.assign_add(random.random() + self.calls * float(self.hidden))
        return super().call(x)


class Both(Places):
    """Looks up the same table in both ways."""

    def call(self, x: Any) -> Any:
        return super().call(x) + self.table(ops.cast(x[..., 0] > 0, "int32"))


def build(*places: Any, tokens: bool = True) -> Any:
    """Some layers that look up places, beside what each sample looks up."""
    if tokens:
        inputs = keras.Input((LENGTH,), dtype="int32")
        x = layers.Embedding(VOCABULARY, WIDTH, name="tokens")(inputs)
    else:
        x = inputs = keras.Input((LENGTH, WIDTH))
    for layer in places:
        x = layers.Dense(WIDTH, "tanh")(layer(x))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))


def train(make: Callable[[], Any], eager: bool = True, **layout: Any) -> Outcome:
    keras.utils.set_random_seed(3)
    model = make()
    model.compile(keras.optimizers.Adam(0.02, global_clipnorm=0.5), "mse", run_eagerly=eager)
    chance = np.random.default_rng(0)
    if len(model.inputs[0].shape) == 2:
        x = chance.integers(0, VOCABULARY, (20, LENGTH))
    else:
        x = chance.normal(size=(20, LENGTH, WIDTH))
        for row, used in enumerate((2, 1, 4, 1, 3) * 4):
            x[row, used:] = 0
        x[:8, 0, 0], x[8:, 0, 0] = -1, 1  # what `InTurns` goes by
    fit = hf.fit if layout else keras.Model.fit
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, x, chance.normal(size=(20, 1)), **arguments, **layout)
    return Outcome(history.history, State.of(model))


# Eager calls find out in the same way as compiled ones.
IN_BOTH_WAYS = pytest.mark.parametrize(
    "eager", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, id="compiled")]
)


def compare(make: Callable[[], Any], names: Any = None, eager: bool = True) -> None:
    expected = on_leader(lambda: train(make, eager))
    for name in [name for name in names or LAYOUTS if name in LAYOUTS] or LAYOUTS:
        actual = train(make, eager, **LAYOUTS[name])
        require_none(actual.compare(expected), name)


@pytest.mark.slow  # compiled models are tried in all of these ways, in less than half the time
@pytest.mark.on_ranks(2)
def test_places_of_a_model_that_runs_eagerly() -> None:
    names = ["data", "parts", "gpipe", "zero-bubble", "interleaved"]
    compare(lambda: build(Places(), Untraceable()), names)


@pytest.mark.on_ranks(2)
@IN_BOTH_WAYS
def test_how_many_rows_depends_on_values(eager: bool) -> None:
    """One part of a batch may look up rows that the other does not."""
    compare(lambda: build(Kinds(), tokens=False), ["data", "gpipe"], eager)


@pytest.mark.on_ranks(2)
def test_places_up_to_the_longest_sequence() -> None:
    compare(lambda: build(PlacesInUse(), tokens=False), ["data", "parts", "gpipe"])


@pytest.mark.on_ranks(2)
def test_another_lookup_in_a_later_step() -> None:
    def make() -> Any:
        model = build(InTurns(), tokens=False)
        model.layers[1].table.embeddings.assign(np.ones((LENGTH, WIDTH)))
        return model

    compare(make, ["data", "gpipe"])


@IN_BOTH_WAYS
def test_a_table_that_several_stages_look_up(eager: bool) -> None:
    """On one rank, or in several partitions that have replicas."""

    def make() -> Any:
        places = Places()
        return build(places, layers.Activation("tanh"), places)

    compare(make, ["stages of replicas", "gpipe"], eager)


@pytest.mark.on_ranks(2)
def test_what_finds_it_out_leaves_no_trace() -> None:
    """What a call changes, changes as often as the model is called in training."""

    def make() -> Any:
        return build(Counting(), layers.BatchNormalization(), tokens=False)

    expected = on_leader(lambda: train(make))
    require_none(train(make, strategy="data", batchnorm="sync").compare(expected), "counting")


@pytest.mark.on_ranks(2)
@IN_BOTH_WAYS
def test_a_table_that_is_looked_up_in_both_ways_is_named(eager: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(lambda: build(Both(name="both"), tokens=False), eager, strategy="data")
    said = [str(w.message) for w in caught if "must be looked up either" in str(w.message)]
    assert len(said) == (0 if WORLD.rank else 1)
    assert all("Received: ['both/table/embeddings']" in text for text in said)
