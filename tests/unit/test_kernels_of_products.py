"""Convolutions, products and Einstein's sums by faster kernels, in a traced graph."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritten import assert_close, numbers, takes_no_rows, train

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels import matrix_products, rewriter
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.stages.recorded import Recorded

IMAGES, SEQUENCES = (3, 9, 8, 4), (3, 6, 8)


CONVOLUTIONS = {
    "same": layers.Conv2D(5, 3, padding="same", use_bias=False),
    "strides": layers.Conv2D(5, (3, 2), strides=2, activation="relu"),
    "dilated": layers.Conv2D(6, 3, dilation_rate=2, padding="same"),
    "points": layers.Conv2D(16, 1),
    "depthwise": layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
    "depthwise strides": layers.DepthwiseConv2D(3, strides=2),
}
LEFT_ALONE = {
    "groups": layers.Conv2D(6, 3, groups=2),
    "transposed": layers.Conv2DTranspose(5, 3),
    "float64": layers.Conv2D(5, 3, dtype="float64"),
}


def both_ways(layer: Any, shape: tuple[int, ...]) -> Counter[str]:
    """Compare what a layer computes as it is and rewritten; what was rewritten."""
    x = numbers(shape, layer.compute_dtype)
    if not layer.built:
        layer.build(shape)

    def call(inputs: Any) -> Any:
        more = {"training": True} if isinstance(layer, layers.BatchNormalization) else {}
        return layer(inputs, **more)

    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert_close(found, expected)
    return Counter(counts)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, chosen: bool) -> None:
    assert both_ways(CONVOLUTIONS[name], IMAGES) == ({"convolution": 1} if chosen else {})


def test_convolutions_of_sequences_and_in_two_parts(chosen: bool) -> None:
    assert both_ways(layers.Conv1D(5, 3), SEQUENCES)["convolution"] == chosen
    assert both_ways(layers.SeparableConv2D(5, 3), IMAGES)["convolution"] == 2 * chosen


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.BatchNormalization(), (6, 6, 8)),  # by many rows, whose gradients nearly cancel
        (layers.BatchNormalization(), (32, 32, 3)),
        (layers.Conv2D(32, 7, strides=2), (32, 32, 64)),
        (layers.Conv2D(8, 3), (8, 8, 960)),
        (layers.EinsumDense("abc,cd->abd", output_shape=(None, 256)), (16, 256)),
    ],
)
def test_proofs_have_room(
    layer: Any, shape: tuple[int, ...], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is right is far from being left out."""
    found: list[float] = []
    exact = rewriter.largest_difference
    monkeypatch.setattr(
        rewriter, "largest_difference", lambda place: found.append(exact(place)) or found[-1]
    )
    counts = both_ways(layer, (5, *shape))
    assert len(found) == len(counts) <= 1
    assert all(difference < 0.5 for difference in found)


def test_no_images(chosen: bool) -> None:
    layer, shape = CONVOLUTIONS["strides"], (0, *IMAGES[1:])
    if not takes_no_rows(lambda: train(layer, layer, numbers(shape), None)):
        pytest.skip("TensorFlow's oneDNN has no gradients of no images")
    both_ways(layer, shape)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_convolutions_are_left_alone(name: str, chosen: bool) -> None:
    assert not both_ways(LEFT_ALONE[name], IMAGES)


def test_products_with_one_matrix(chosen: bool) -> None:
    layer = layers.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d")
    assert both_ways(layer, SEQUENCES) == {"batched product": 1}


class Multiplied(layers.Layer):
    """A product with a long weight, each transposed or not, between other operations."""

    def __init__(self, transpose_x: bool, transpose_y: bool) -> None:
        super().__init__()
        self.flags = transpose_x, transpose_y

    def build(self, shape: Any) -> None:
        rows, size = shape
        summed, other = (rows, 600) if self.flags[0] else (size, 600)
        given = (other, summed) if self.flags[1] else (summed, other)
        self.other = self.add_weight(shape=given, initializer="glorot_uniform")

    def call(self, x: Any) -> Any:
        x = tf.tanh(x)
        made = tf.matmul(x, self.other.value, transpose_a=self.flags[0], transpose_b=self.flags[1])
        return tf.reduce_sum(tf.square(made), axis=1, keepdims=True) + x[:1, :1]


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)), ids=str)
def test_products_of_long_matrices(flags: tuple[bool, bool], chosen: bool) -> None:
    shape = (6, 520)
    layer, x = Multiplied(*flags), numbers(shape)
    layer.build(shape)
    expected, _ = train(layer, layer, x, None, known=True)
    found, counts = train(layer, layer, x, Rewriter(), known=True)
    assert counts == ({"product": 1} if chosen else {})
    assert_close(found, expected)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_dense_layers_of_many_units(rows: int, chosen: bool) -> None:
    layer = layers.Dense(600, activation="relu")
    layer.build((None, 5))
    assert matrix_products.gains(layer) == chosen
    assert both_ways(layer, (rows, 5)) == ({"product": 1} if chosen else {})


@pytest.mark.parametrize("more", [{"units": 20}, {"units": 600, "dtype": "float64"}], ids=str)
def test_other_dense_layers_are_left_alone(more: dict[str, Any], chosen: bool) -> None:
    layer = layers.Dense(**more)
    layer.build((None, 5))
    assert not both_ways(layer, (3, 5))
    assert not (matrix_products.gains(layer) and layer.compute_dtype == "float32")


class Summed(layers.Layer):
    """An Einstein's sum of the input and of a weight, or of the input alone."""

    def __init__(self, equation: str, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.equation, self.shape = equation, shape

    def build(self, shape: Any) -> None:
        if self.shape:
            self.other = self.add_weight(shape=self.shape, initializer="glorot_uniform")
        self.built = True

    def call(self, x: Any) -> Any:
        return tf.einsum(self.equation, x, self.other.value if self.shape else x)


@pytest.mark.parametrize(
    ("equation", "shape", "count"),
    [
        ("abc,adc->abd", (3, 5, 8), 1),
        ("abc,acd->abd", (3, 8, 5), 1),
        ("abc,adb->adc", (3, 5, 6), 1),
        ("abc,dba->acd", (5, 6, 3), 1),
        ("abc,bdc->bad", (6, 5, 8), 1),
        ("abc,abd->acd", None, 1),
        ("abc,dc->abd", (5, 8), 0),  # one matrix for all
        ("abc,abd->abcd", None, 0),  # no sum
        ("abc,abd->bcd", None, 1),
        ("abc,abc->ab", None, 0),  # no rows
        ("abc,abc->abc", None, 0),
    ],
)
def test_sums(equation: str, shape: tuple[int, ...] | None, count: int, chosen: bool) -> None:
    given = (3, 6, 8)
    if shape is None and equation.startswith("abc,abd"):
        layer = layers.Lambda(lambda x: tf.einsum(equation, x, x * 2.0))
    else:
        layer = Summed(equation, shape)
    assert both_ways(layer, given)["einsum"] == count


def test_products_of_pairs_that_are_repeated(chosen: bool) -> None:
    """One side has fewer matrices, which are repeated, or is transposed; so are its gradients."""
    other = numbers((1, 4, 6))

    def call(x: Any) -> Any:
        y = tf.matmul(x, x, transpose_a=True) + tf.matmul(x[:1], x, transpose_b=True)
        return tf.matmul(tf.matmul(x, other, transpose_b=True), y[:, :4])

    layer, x = layers.Identity(), numbers((3, 6, 6))
    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert counts == ({"batched product": 4} if chosen else {})
    assert_close(found, expected)


def attention(width: int = 8) -> Any:
    x = inputs = keras.Input([6, width])
    attend = layers.MultiHeadAttention(2, 4, use_bias=False)
    y = attend(layers.LayerNormalization()(x), x, use_causal_mask=True)
    return keras.Model(inputs, layers.Dense(width, "gelu")(layers.Add()([x, y])))


def residual(width: int = 4) -> Any:
    x = inputs = keras.Input([9, 8, width])
    for _ in range(2):
        y = layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(x))
        )
        x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(y)])
    return keras.Model(inputs, x)


@pytest.mark.parametrize("make", [attention, residual])
def test_kernels_read_each_other(make: Any, chosen: bool) -> None:
    """All together; what was replaced is not computed any more."""
    model = make()
    shape = (3, *model.input_shape[1:])
    old = ("Einsum", "Rsqrt") if make is residual else ("Einsum",)
    old += ("Conv2D", "DepthwiseConv2dNative", "BatchMatMulV2") if chosen else ()
    kinds: set[str] = set()

    def call(inputs: Any) -> Any:
        return model(inputs, training=True)

    def step(inputs: Any) -> Any:
        recorded = Recorded(lambda: [call(inputs)], [inputs], Rewriter())
        results = [*recorded.results, *recorded.gradients(recorded.results, None)]
        waiting = [tensor.op for tensor in results]
        seen = set()
        while waiting:
            operation = waiting.pop()
            if operation not in seen:
                seen.add(operation)
                waiting += [tensor.op for tensor in operation.inputs]
        kinds.update(operation.type for operation in seen)
        return results

    tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    assert kinds.isdisjoint(old)
    expected, _ = train(call, model, numbers(shape), None)
    found, counts = train(call, model, numbers(shape), Rewriter())
    assert sum(counts.values()) > 1
    assert_close(found, expected)


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert not one_dnn.is_chosen()  # the user has chosen
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    monkeypatch.setattr("hyparflow.comm.one_dnn.processor_flags", lambda: frozenset())
    assert not one_dnn.is_chosen()
    flags = frozenset({"avx2", "fma"})
    monkeypatch.setattr("hyparflow.comm.one_dnn.processor_flags", lambda: flags)
    no_gpu = not tf.config.list_logical_devices("GPU")
    assert one_dnn.is_chosen() == (one_dnn._is_there() and no_gpu)


def test_the_gradient_of_depthwise_filters_is_tensorflows(chosen: bool) -> None:
    """Because oneDNN's takes many times as long."""
    layer = layers.DepthwiseConv2D(3)
    layer.build(IMAGES)
    kinds: set[str] = set()

    def step(inputs: Any) -> Any:
        weights = [v.value for v in layer.trainable_variables]
        recorded = Recorded(lambda: [layer(inputs)], [inputs, *weights], Rewriter())
        made = recorded.gradients(recorded.results, None)
        kinds.update(op.type for op in tf.compat.v1.get_default_graph().get_operations())
        return made

    tf.function(step, autograph=False)(tf.constant(np.ones(IMAGES, "float32")))
    name = "DepthwiseConv2dNativeBackprop"
    assert f"{name}Filter" in kinds
    assert f"_MklNative{name}Filter" not in kinds
    assert (f"_MklNative{name}Input" in kinds) == chosen
