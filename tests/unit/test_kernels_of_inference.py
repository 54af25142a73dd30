"""What follows convolutions is done with them, where no gradients are taken."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritten import assert_close, infer, numbers, takes_no_rows, train

from hyparflow.engine.kernels import convolutions, folded, scaled
from hyparflow.engine.kernels.rewriter import Rewriter

IMAGES = (3, 9, 8, 4)


def network(*parts: Any) -> Any:
    """Layers one after the other, with random weights and statistics."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(IMAGES[1:]), *parts])
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.3, 1.2, w.shape) for w in model.get_weights()])
    return model


def both_ways(model: Any) -> Any:
    x = numbers(IMAGES, model.compute_dtype)

    def call(inputs: Any) -> Any:
        return model(inputs, training=False)

    expected, _ = infer(call, x, None)
    found, counts = infer(call, x, Rewriter())
    assert_close(found, expected)
    if takes_no_rows(lambda: infer(call, x[:0], None)):
        empty, _ = infer(call, x[:0], Rewriter())
        assert empty[0].shape == (0, *expected[0].shape[1:])
    return counts


FOLDED = {
    "bias": lambda: [layers.Conv2D(6, 3)],
    "bias and activation": lambda: [layers.Conv2D(6, 3, padding="same", activation="relu")],
    "other activation": lambda: [layers.Conv2D(6, 3, activation="tanh")],
    "normalization": lambda: [layers.Conv2D(6, 3), layers.BatchNormalization()],
    "all": lambda: [
        layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
    ],
    "depthwise": lambda: [
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
    ],
    "without scale": lambda: [layers.Conv2D(6, 3), layers.BatchNormalization(scale=False)],
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_follows_a_convolution_is_done_with_it(name: str, chosen: bool) -> None:
    counts = both_ways(network(*FOLDED[name]()))
    assert counts[folded.NAME] == 1
    assert not counts[convolutions.NAME]


def test_large_filters_are_not_scaled(chosen: bool) -> None:
    """Scaling them would cost what is saved; their bias is still added at once."""
    model = network(layers.Conv2D(200, (9, 8)), layers.BatchNormalization())
    before = len(_products(model, None))
    assert both_ways(model)[folded.NAME] == 1
    assert len(_products(model, Rewriter())) == before


def _products(model: Any, rewriter: Rewriter | None) -> list[Any]:
    """The shapes of what is multiplied number by number."""
    seen = []

    def call(x: Any) -> Any:
        made = model(x, training=False)
        seen.append(made.graph)
        return made

    infer(call, numbers(IMAGES), rewriter)
    return [o for o in seen[0].get_operations() if o.type == "Mul"]


def test_what_others_read_is_not_folded(chosen: bool) -> None:
    inputs = keras.Input(IMAGES[1:])
    x = layers.Conv2D(6, 3, use_bias=False)(inputs)
    model = keras.Model(inputs, layers.Add()([layers.BatchNormalization()(x), x]))
    assert not both_ways(model)[folded.NAME]


def test_a_normalization_before_a_convolution(chosen: bool) -> None:
    model = network(layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(6, 3))
    counts = both_ways(model)
    assert counts[scaled.NAME] == int(chosen)
    assert counts[folded.NAME] == 1


def test_float64_is_left_alone(chosen: bool) -> None:
    given = {"dtype": "float64"}
    model = network(
        layers.Conv2D(6, 3, **given), layers.BatchNormalization(**given), layers.ReLU(**given)
    )
    assert not both_ways(model)


def test_training_is_not_folded(chosen: bool) -> None:
    model, x = network(layers.Conv2D(6, 3), layers.BatchNormalization()), numbers(IMAGES)

    def call(inputs: Any) -> Any:
        return model(inputs, training=False)  # as a frozen layer in training

    expected, _ = train(call, model, x, None)
    found, counts = train(call, model, x, Rewriter())
    assert not counts[folded.NAME]
    assert_close(found, expected)


def test_numbers_that_are_not_finite_stay_so(chosen: bool) -> None:
    model = network(*FOLDED["all"]())
    x = numbers(IMAGES)
    x[0] = np.nan

    def call(inputs: Any) -> Any:
        return model(inputs, training=False)

    (expected,), _ = infer(call, x, None)
    (found,), _ = infer(call, x, Rewriter())
    np.testing.assert_array_equal(np.isnan(found[1:]), False)
    assert_close([found[1:]], [expected[1:]])
    assert tf.reduce_any(tf.math.is_nan(expected[0])) == tf.reduce_any(tf.math.is_nan(found[0]))
