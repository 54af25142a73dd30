"""Functions that XLA compiles in place of several operations: activations and normalizations."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from rewritten import assert_close, infer, numbers, train

from hyparflow.engine.compiled.split_function import Split
from hyparflow.engine.kernels import elementwise, layer_normalization
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.stages.recorded import Recorded

SEQUENCES = (3, 64, 64)


class Applied(layers.Layer):
    """Computes by a function, between other operations."""

    def __init__(self, function: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._function = function
        self._dense = layers.Dense(64, dtype=arguments.get("dtype"))

    def build(self, shape: Any) -> None:
        self._dense.build(shape)

    def call(self, x: Any) -> Any:
        return ops.sum(self._function(self._dense(x)), axis=1)


FUNCTIONS = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu by tanh": ops.gelu,
    "hard silu": ops.hard_silu,
    "squareplus": ops.squareplus,
    "one of its own": lambda x: 0.5 * x * (1.0 + ops.tanh(ops.exp(-ops.square(x)) * 3.0)) - 1.0,
    "twice": lambda x: ops.gelu(ops.gelu(x), approximate=False),
}
NOT_ONE_TENSOR = {
    "two tensors": lambda x: ops.exp(x) * ops.tanh(ops.flip(x, 1)) + ops.flip(x, 2),
    "two operations": lambda x: ops.exp(x) + 1.0,
    "read by others": lambda x: (lambda y: y + ops.flip(y, 1))(ops.exp(x)) * ops.tanh(x),
    "other numbers": lambda x: ops.exp(x) * ops.arange(64, dtype=x.dtype) + ops.tanh(x),
}


def both_ways(layer: Any, shape: tuple[int, ...] = SEQUENCES) -> Any:
    """Compare what a layer computes as it is and rewritten; what was rewritten."""
    x = numbers(shape, layer.compute_dtype)
    if not layer.built:
        layer.build(shape)
    expected, _ = train(layer, layer, x, None)
    found, counts = train(layer, layer, x, Rewriter())
    assert_close(found, expected)
    inferred, _ = infer(layer, x, Rewriter())
    assert_close(inferred, expected[:1])
    return counts


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_tensor_are_one_pass(name: str) -> None:
    counts = both_ways(Applied(FUNCTIONS[name]))
    assert counts[elementwise.NAME] == 1


@pytest.mark.parametrize("name", NOT_ONE_TENSOR)
def test_what_takes_more_than_one_tensor_is_computed_as_before(name: str) -> None:
    assert not both_ways(Applied(NOT_ONE_TENSOR[name]))[elementwise.NAME]


def test_a_result_that_others_read_ends_a_group() -> None:
    def function(x: Any) -> Any:
        y = ops.gelu(x, approximate=False)
        return ops.tanh(y) * 2.0 - 1.0 + ops.flip(y, 1)

    assert both_ways(Applied(function))[elementwise.NAME] == 2


@pytest.mark.parametrize("name", ["float64", "few numbers"])
def test_what_gains_nothing_is_left_alone(name: str) -> None:
    shape = SEQUENCES if name == "float64" else (3, 4, 64)
    layer = Applied(FUNCTIONS["gelu"], dtype="float64" if name == "float64" else "float32")
    assert not both_ways(layer, shape)[elementwise.NAME]


def test_sizes_that_change_are_left_alone() -> None:
    """XLA would compile for each length of a sequence."""
    spec = tf.TensorSpec((None, None, 64), tf.float32)
    normalized, seen = with_random_weights(layers.LayerNormalization(), SEQUENCES), []

    def step(x: Any) -> Any:
        recorded = Recorded(lambda: [FUNCTIONS["gelu"](normalized(x))], [x], Rewriter())
        seen.append(recorded.rewritten)
        return recorded.results[0]

    tf.function(step, autograph=False).get_concrete_function(spec)
    assert not seen[-1]


NORMALIZATIONS = {
    "layer": layers.LayerNormalization(),
    "layer without scale": layers.LayerNormalization(scale=False),
    "layer without offset": layers.LayerNormalization(center=False),
    "layer without both": layers.LayerNormalization(scale=False, center=False),
    "layer, other epsilon": layers.LayerNormalization(epsilon=0.3),
    "root mean square": layers.RMSNormalization(),
}
OTHER_NORMALIZATIONS = {
    "other axis": layers.LayerNormalization(axis=1),
    "two axes": layers.LayerNormalization(axis=(1, 2)),
    "float64": layers.LayerNormalization(dtype="float64"),
    "groups": layers.GroupNormalization(4),
}


def with_random_weights(layer: Any, shape: tuple[int, ...]) -> Any:
    if not layer.built:
        layer.build((None, *shape[1:]))
    random = np.random.default_rng(1)
    layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("name", NORMALIZATIONS)
@pytest.mark.parametrize("shape", [SEQUENCES, (3, 8, 9, 64), (5, 4100)], ids=str)
def test_normalizations_of_rows(name: str, shape: tuple[int, ...]) -> None:
    kind = type(NORMALIZATIONS[name])
    layer = kind.from_config(NORMALIZATIONS[name].get_config())
    counts = both_ways(with_random_weights(layer, shape), shape)
    assert counts[layer_normalization.NAME] == 1


@pytest.mark.parametrize("name", OTHER_NORMALIZATIONS)
def test_other_normalizations_are_left_alone(name: str) -> None:
    layer = with_random_weights(OTHER_NORMALIZATIONS[name], SEQUENCES)
    assert not both_ways(layer)[layer_normalization.NAME]


class OwnRootMeanSquare(layers.Layer):
    """As other libraries write it: the scale first, or rows cast before."""

    def __init__(self, scale_first: bool) -> None:
        super().__init__()
        self._scale_first = scale_first

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        root = ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)
        return self.scale * (x * root) if self._scale_first else (root * x) * self.scale


@pytest.mark.parametrize("scale_first", [True, False])
def test_root_mean_square_of_ones_own(scale_first: bool) -> None:
    layer = OwnRootMeanSquare(scale_first)
    assert both_ways(with_random_weights(layer, SEQUENCES))[layer_normalization.NAME] == 1


def test_a_mean_that_is_read_too_is_still_there() -> None:
    class WithMean(layers.LayerNormalization):
        def call(self, inputs: Any) -> Any:
            return super().call(inputs) + ops.mean(inputs, axis=-1, keepdims=True)

    assert both_ways(with_random_weights(WithMean(), SEQUENCES))[layer_normalization.NAME] == 1


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_the_same_function_takes_any_number_of_rows(rows: int) -> None:
    layer = with_random_weights(layers.LayerNormalization(), SEQUENCES)

    def compute(x: Any) -> Any:
        return FUNCTIONS["gelu"](layer(x))

    x = numbers((rows, *SEQUENCES[1:]))
    expected, _ = train(compute, layer, x, None)
    found, counts = train(compute, layer, x, Rewriter())
    assert counts[elementwise.NAME] == counts[layer_normalization.NAME] == 1
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "numbers_of_a_row"), [("gelu", 0), ("gelu by tanh", 0), ("layer", 2)]
)
def test_less_is_kept_for_the_backward(name: str, numbers_of_a_row: int) -> None:
    """What goes in is kept, once, and of normalized rows two numbers of each, and the scale."""
    layer = FUNCTIONS.get(name) or with_random_weights(NORMALIZATIONS[name], SEQUENCES)
    kept = {}
    for rewriter in (Rewriter(), None):

        def first(x: Any, rewriter: Any = rewriter) -> Any:
            recorded = Recorded(lambda: [layer(x)], [x], rewriter)
            return recorded.results[0], recorded

        split = Split(
            first,
            lambda recorded, seed: recorded.gradients(recorded.results, [seed]),
            [tf.TensorSpec((None, *SEQUENCES[1:]), tf.float32)],
            lambda outputs: [outputs],
        )
        _, tensors = split.forward([tf.constant(numbers(SEQUENCES))])
        kept[rewriter is None] = sum(math.prod(x.shape) for x in tensors if x.dtype == tf.float32)
    count = math.prod(SEQUENCES)
    assert kept[False] <= count + numbers_of_a_row * count / SEQUENCES[-1] + SEQUENCES[-1]
    assert kept[True] > 1.9 * kept[False]


def test_a_model_of_sequences_is_rewritten_where_layers_say_so() -> None:
    keras.utils.set_random_seed(0)
    gelu = layers.Dense(64, activation="gelu")
    assert elementwise.gains(gelu)
    assert not elementwise.gains(layers.Dense(64, activation="relu"))
    assert layer_normalization.gains(layers.RMSNormalization())
