"""Kernels of attention, given to XLA as matrices."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from language_models import kept_model

from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.serving.decoding.adapters import decoder_of
from hyparflow.serving.decoding.flat_kernels import FlatKernels
from hyparflow.serving.decoding.product_letters import ProductLetters
from hyparflow.serving.scheduling.window import Shape


@pytest.mark.parametrize(
    ("equation", "shape", "summed"),
    [
        ("bqm,mnh->bqnh", (None, 4, 8), 1),
        ("abc,cde->abde", (None, 4, 8), 1),
        ("bqnh,nhm->bqm", (None, 8), 2),
        ("btd,ndh->btnh", (None, 4, 8), None),  # summed in the middle: no matrix as it lies
        ("...x,xy->...y", (None, 8), 1),
    ],
)
def test_which_axes_are_summed(equation: str, shape: tuple[int, ...], summed: int | None) -> None:
    layer = keras.layers.EinsumDense(equation, shape)
    assert ProductLetters.of(layer).summed_first == summed


def test_layers_compute_with_the_matrices() -> None:
    layers = [
        keras.layers.EinsumDense("bqm,mnh->bqnh", (None, 4, 8), bias_axes="nh"),
        keras.layers.EinsumDense("bqnh,nhm->bqm", (None, 6)),
        keras.layers.EinsumDense("btd,ndh->btnh", (None, 4, 8)),
        keras.layers.Dense(3),
    ]
    given = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    middle = layers[0](given)
    expected = [middle, layers[1](middle), layers[2](given), layers[3](given)]
    kernels = FlatKernels(layers)
    matrices = kernels.matrices()
    assert [tuple(matrix.shape) for matrix in matrices] == [(6, 32), (32, 6)]
    with kernels.given([2 * matrix for matrix in matrices]):
        twice = layers[1](layers[0](given) - layers[0].bias)
        same = [layers[2](given), layers[3](given)]
    np.testing.assert_allclose(twice, 4 * layers[1](middle - layers[0].bias), rtol=1e-5)
    np.testing.assert_allclose(layers[1](middle), expected[1])
    for one, other in zip(same, expected[2:], strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("change", ["quantize", "enable_lora"])
def test_kernels_that_are_made_of_others_stay(change: str) -> None:
    layer = keras.layers.EinsumDense("bqm,mnh->bqnh", (None, 4, 8))
    layer.build((None, None, 6))
    assert len(FlatKernels([layer]).matrices()) == 1
    getattr(layer, change)("int8" if change == "quantize" else 2)
    assert FlatKernels([layer]).matrices() == []


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_what_is_compiled_takes_matrices(name: str) -> None:
    """All kernels of attention: one that came as it is would make steps of one row slow."""
    model = kept_model(name)
    large = [w for w in model.trainable_weights if len(w.shape) > 2]
    assert len(FlatKernels(all_layers(model)).matrices()) == len(large) > 0


def test_weights_that_are_changed_are_met() -> None:
    decoder = decoder_of(kept_model("GPT2"))
    kernel = next(w for w in kept_model("GPT2").weights if w.path.endswith("query/kernel"))
    caches = decoder.empty(Shape(1, 8))
    before = decoder.run(caches, [1], [0], 8)[0].tolist()
    old = kernel.numpy()
    try:
        for weight in kept_model("GPT2").trainable_weights:
            if len(weight.shape) > 2:
                weight.assign(-weight)
        changed = decoder.run(decoder.empty(Shape(1, 8)), [1], [0], 8)[0].tolist()
        logits = kept_model("GPT2")(
            {
                "token_ids": tf.constant([[1, *(x[0] for x in changed)]]),
                "padding_mask": tf.ones([1, 9], tf.int32),
            }
        )
    finally:
        for weight in kept_model("GPT2").trainable_weights:
            if len(weight.shape) > 2:
                weight.assign(-weight)
    assert np.array_equal(kernel.numpy(), old)
    assert np.argmax(logits[0, :-1], -1).tolist() == [x[0] for x in changed] != before
