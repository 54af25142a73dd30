"""Faster kernels where layers compute with bfloat16, whatever this processor is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritten import infer, numbers, train

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels.rewriter import Rewriter, may_be_rewritten
from hyparflow.engine.stages.recorded import Recorded

POLICY = "mixed_bfloat16"
UNIT = 2.0**-8  # of bfloat16's last place

# Layers, the shapes of what they take, and which kernels are put in.
LAYERS: dict[str, tuple[Any, tuple[int, ...], set[str]]] = {
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, padding="same"),
        (2, 8, 8, 4),
        {"depthwise gradient"},
    ),
    "depthwise with strides": (
        lambda: layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
        (2, 9, 9, 3),
        {"depthwise gradient"},
    ),
    "batch normalization": (
        layers.BatchNormalization,
        (4, 3, 3, 5),
        {"batch normalization"},
    ),
    "batch normalization of rows": (
        layers.BatchNormalization,
        (16, 5),
        {"batch normalization"},
    ),
    "layer normalization": (
        layers.LayerNormalization,
        (3, 64, 64),
        {"layer normalization"},
    ),
    "normalization by RMS": (layers.RMSNormalization, (3, 64, 64), {"layer normalization"}),
    "gelu": (lambda: layers.Dense(64, activation="gelu"), (3, 64, 16), {"elementwise"}),
    "products": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3)),
        (3, 5, 4),
        {"batched product"},
    ),
    "long short-term memory": (
        lambda: layers.LSTM(6, return_sequences=True),
        (3, 5, 4),
        {"recurrent layer"},
    ),
    "gated recurrent units": (
        lambda: layers.GRU(6, return_sequences=True),
        (3, 5, 4),
        {"recurrent layer"},
    ),
}


def built(name: str, policy: str = POLICY) -> tuple[Any, np.ndarray]:
    """A layer with random weights, and numbers for it, all of which bfloat16 has."""
    make, shape, _ = LAYERS[name]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    layer = make()
    keras.config.set_dtype_policy(before)
    layer.build(shape)
    random = np.random.default_rng(1)
    weights = [random.uniform(0.1, 0.5, w.shape) for w in layer.get_weights()]
    layer.set_weights([w.astype("bfloat16").astype("float32") for w in weights])
    return layer, numbers(shape, "bfloat16").astype(layer.compute_dtype)


def trained(name: str, rewriter: Rewriter | None, policy: str = POLICY) -> tuple[Any, Any]:
    layer, x = built(name, policy)

    def call(inputs: Any) -> Any:
        takes = "training" in layer._call_signature.parameters
        return layer(inputs, training=True) if takes else layer(inputs)

    return train(call, layer, x, rewriter, known=True)


def assert_as_exact(found: Any, expected: Any, exact: Any) -> None:
    """What a kernel makes is about as near to float32's numbers as what Keras makes."""
    for one, other, right in zip(found, expected, exact, strict=True):
        assert one.dtype == other.dtype
        one, other, right = (a.astype(np.float64) for a in (one, other, right))
        unit = UNIT * max(np.abs(right).max(), 0.1)
        assert np.abs(one - right).max() <= max(2 * np.abs(other - right).max(), unit)


@pytest.fixture
def is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that computes with bfloat16."""
    monkeypatch.setattr(one_dnn, "is_chosen", lambda: False)


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_of_narrow_numbers(name: str, is_fast: None) -> None:
    expected, _ = trained(name, None)
    found, counts = trained(name, Rewriter())
    exact, _ = trained(name, None, "float32")
    assert may_be_rewritten(built(name)[0])
    assert set(counts) == LAYERS[name][2]
    assert_as_exact(found, expected, exact)


@pytest.mark.parametrize("name", ["layer normalization", "gelu", "long short-term memory"])
def test_kernels_of_narrow_numbers_in_inference(name: str, is_fast: None) -> None:
    (layer, x), (wide, wide_x) = built(name), built(name, "float32")
    expected, _ = infer(layer, x, None)
    exact, _ = infer(wide, wide_x, None)
    found, counts = infer(layer, x, Rewriter())
    assert set(counts) == LAYERS[name][2]
    assert_as_exact(found, expected, exact)


@pytest.mark.parametrize("name", LAYERS)
def test_slow_processors_compute_as_keras_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what Keras computes in float32 there, too: they have no instructions for bfloat16."""
    monkeypatch.setattr(one_dnn, "is_chosen", lambda: True)
    assert not may_be_rewritten(built(name)[0])
    _, counts = trained(name, Rewriter())
    assert set(counts) <= {"batch normalization", "layer normalization"}


def test_batch_normalization_takes_and_makes_narrow_numbers(is_fast: None) -> None:
    """Without conversions: what is kept for the gradient is half as large."""
    layer, x = built("batch normalization")
    types = {}

    def step(inputs: Any) -> Any:
        recorded = Recorded(lambda: [layer(inputs, training=True)], [inputs], Rewriter())
        types["made by"] = recorded.results[0].op.type
        return recorded.results[0]

    made = tf.function(step, autograph=False).get_concrete_function(tf.constant(x))
    assert made.structured_outputs.dtype == tf.bfloat16
    assert types == {"made by": "FusedBatchNormV3"}
