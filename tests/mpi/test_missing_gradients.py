"""Weights without a gradient: plain Keras's error, or its warning, once and over all partitions."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD
from keras import layers, ops

import hyparflow as hf

pytestmark = [
    pytest.mark.skipif(WORLD.size == 1, reason="one rank runs Keras's own fit"),
    pytest.mark.on_ranks(2),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"strategy": "data"},
    "model": {"strategy": "model", "num_microbatches": 2},
}
NONE = r"^No gradients provided for any variable\.$"
X = np.random.default_rng(0).normal(size=(8, 3))


class Stop(layers.Layer):
    """Lets no gradient through, or none where the first input of a batch is positive."""

    def __init__(self, always: bool = True) -> None:
        super().__init__()
        self.always = always

    def call(self, x: Any) -> Any:
        stops = self.always or not hasattr(x, "numpy") or float(ops.max(x)) > 0
        return ops.stop_gradient(x) if stops else x


def build(stop: int, regularizer: str | None = None, trainable: bool = True) -> keras.Model:
    """Three layers in a row; those before number `stop` have no gradient."""
    sequence: list[Any] = [layers.Dense(3, name=name) for name in "abc"]
    sequence[0].kernel_regularizer = keras.regularizers.get(regularizer)
    sequence.insert(stop, Stop())
    model = keras.Sequential([keras.Input((3,)), *sequence], name="model")
    model.trainable = trainable
    model.compile("adam", "mse")
    return model


def said(model: keras.Model, **arguments: Any) -> list[str]:
    """What a training warns of, beside what Keras warns of any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.fit(model, X, X, batch_size=4, verbose=0, **arguments)
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "radient" in text or "trainable" in text]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_weight_has_a_gradient(layout: str) -> None:
    model = build(3)
    with pytest.raises(ValueError, match=NONE):
        hf.fit(model, X, X, batch_size=4, verbose=0, **LAYOUTS[layout])
    assert int(model.optimizer.iterations) == 0  # as in plain Keras


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_weight_has_a_gradient_in_a_later_step(layout: str) -> None:
    inputs = keras.Input((3,))
    outputs = Stop(always=False)(layers.Dense(3, kernel_initializer="identity")(inputs))
    outputs = layers.Activation("linear")(layers.Dense(3, trainable=False)(outputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse", run_eagerly=True)
    x = -np.ones((12, 3))
    x[4:] = 1
    with pytest.raises(ValueError, match=NONE):
        hf.fit(model, x, x, batch_size=4, shuffle=False, verbose=0, **LAYOUTS[layout])
    assert int(model.optimizer.iterations) == 1  # the one before, as in plain Keras


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_weights_have_none(layout: str) -> None:
    model = build(1, regularizer="l2")
    before = [np.array(weight) for weight in model.weights]
    texts = said(model, epochs=2, **LAYOUTS[layout])
    if WORLD.rank:
        assert texts == []
        return
    assert len(texts) == 1
    assert "Gradients do not exist for variables ['model/a/bias']" in texts[0]
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True)]
    assert changed == [True, False, True, True, True, True]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_weight_is_trainable(layout: str) -> None:
    texts = said(build(0, trainable=False), **LAYOUTS[layout])
    assert texts == ([] if WORLD.rank else ["The model does not have any trainable weights."])


class OwnStep(keras.Model):
    """With Keras's usual step written out; gradients stop behind layer "a", or before the loss."""

    def __init__(self, everywhere: bool) -> None:
        super().__init__(name="model")
        self.a, self.b = layers.Dense(3, name="a"), layers.Dense(3, name="b")
        self.everywhere = everywhere

    def call(self, x: Any) -> Any:
        y = self.b(ops.stop_gradient(self.a(x)))
        return ops.stop_gradient(y) if self.everywhere else y

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean((self(x, training=True) - y) ** 2)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def with_own_step(everywhere: bool, eager: bool) -> keras.Model:
    model = OwnStep(everywhere)
    model.build((None, 3))
    model.compile("adam", run_eagerly=eager)
    return model


@pytest.mark.parametrize("eager", [True, pytest.param(False, id="compiled")])
def test_own_steps_without_gradients(eager: bool) -> None:
    """The job goes on where the script catches the error, which is the same on all ranks."""
    model = with_own_step(True, eager)
    with pytest.raises(ValueError, match=NONE):
        hf.fit(model, X, X, batch_size=4, verbose=0, strategy="data")
    assert int(model.optimizer.iterations) == 0
    texts = said(with_own_step(False, eager), epochs=2, strategy="data")
    missing = "Gradients do not exist for variables ['model/a/kernel', 'model/a/bias']"
    assert all(text.startswith(missing) for text in texts)
    assert bool(texts) == (WORLD.rank == 0)
    assert len(texts) <= (4 if eager else 2)  # in each step, or while it is traced
