"""Normalization of each row over its last axis, in few passes: that of layers and that by RMS.

Keras writes layer normalization (Ba, Kiros and Hinton, 2016) out: y = x * factor + (offset - mean *
factor) with factor = scale / sqrt(variance + epsilon), of which each is a tensor as large as x; and
normalization by the root of the mean square (Zhang and Sennrich, 2019) as x * root * scale. Here
each forward is one function compiled by XLA, and what is kept is x, and a mean and a root for each
row.

Proof: the same sums in another order. With h = (x - mean) * root and a = gradient * scale, that of
x is root * (a - mean of a - h * mean of a * h), that of the scale the sum of gradient * h over
rows. Sums of gradients are left to TensorFlow, which is faster at them than XLA.

Gain: forward 2.0, gradient 3.6 times as fast on an AMD EPYC (Zen 1), 4096 rows of 512 numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.xla_function import XlaFunction
from hyparflow.engine.kernels.number_types import narrow_result, narrow_source
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import (
    TracedOperations,
    constant,
    inverse_root,
    is_made_by,
    is_vector,
    without_views,
)

__all__ = ["NAME", "find", "gains"]

NAME = "layer normalization"
_LAYERS = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
_Between = set[Any]  # operations that are not needed afterwards


class _Normalized(NamedTuple):
    """What is normalized: with a mean, if it is `centered`, or by its mean square alone."""

    x: Any
    scale: Any | None
    offset: Any | None
    epsilon: float
    centered: bool
    operations: _Between


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    return isinstance(layer, _LAYERS)


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The normalizations of the last axis."""
    if tf.config.list_logical_devices("GPU"):
        return
    for operation in traced.operations:
        if operation.type in ("AddV2", "Mul") and operation.outputs[0].dtype == tf.float32:
            look = _by_mean if operation.type == "AddV2" else _by_square
            found = look(operation)
            if found is not None and _is_usual(traced, found):
                yield _rewrite(traced, operation.outputs[0], found)


def _is_usual(traced: TracedOperations, found: _Normalized) -> bool:
    shape = found.x.shape
    if shape.rank is None or shape.rank < 2 or shape[-1] is None or shape[-1] <= 1:
        return False
    vectors = [v for v in (found.scale, found.offset) if v is not None]
    return traced.gains_by_xla(shape) and all(is_vector(v, shape[-1]) for v in vectors)


# --- how Keras writes them ---


def _by_mean(operation: Any) -> _Normalized | None:
    """x * factor + (-mean * factor + offset)."""
    product, shift = operation.inputs
    if not is_made_by(product, "Mul") or not is_made_by(shift, "AddV2", "Mul"):
        return None
    x, factor = product.op.inputs
    moved, offset = shift.op.inputs if is_made_by(shift, "AddV2") else (shift, None)
    if not is_made_by(moved, "Mul") or moved.op.inputs[1] is not factor:
        return None
    minus = moved.op.inputs[0]
    if not is_made_by(minus, "Neg"):
        return None
    root, scale = factor.op.inputs if is_made_by(factor, "Mul") else (factor, None)
    known = _of_rows(root, x)
    if known is None:
        return None
    mean_square, epsilon, between = known
    deviations = mean_square.op.inputs[0]
    if not is_made_by(deviations, "SquaredDifference") or deviations.op.inputs[0] is not x:
        return None
    mean = minus.op.inputs[0]
    if _mean_of(mean) is not x or without_views(_unstopped(deviations.op.inputs[1])) is not mean:
        return None
    between |= {operation, product.op, shift.op, moved.op, factor.op, minus.op, deviations.op}
    between |= {mean.op, deviations.op.inputs[1].op}
    return _Normalized(
        x=x, scale=scale, offset=offset, epsilon=epsilon, centered=True, operations=between
    )


def _by_square(operation: Any) -> _Normalized | None:
    """(x * root) * scale."""
    product, scale = operation.inputs
    if not is_made_by(product, "Mul"):
        product, scale = scale, product
    if not is_made_by(product, "Mul"):
        return None
    for x, root in (product.op.inputs, list(product.op.inputs)[::-1]):
        known = _of_rows(root, x)
        if known is not None:
            mean_square, epsilon, between = known
            square = mean_square.op.inputs[0]
            if is_made_by(square, "Square") and square.op.inputs[0] is x:
                between |= {operation, product.op, square.op}
                return _Normalized(
                    x=x,
                    scale=scale,
                    offset=None,
                    epsilon=epsilon,
                    centered=False,
                    operations=between,
                )
    return None


def _of_rows(root: Any, x: Any) -> tuple[Any, float, _Between] | None:
    """Of 1 / sqrt(mean + epsilon) the mean, over the last axis of what is shaped like x."""
    known = inverse_root(root)
    if known is None or x.shape.rank is None:
        return None
    mean, epsilon, operations = known
    if _mean_of(mean) is None or mean.shape.as_list() != [*x.shape[:-1].as_list(), 1]:
        return None
    return mean, epsilon, operations | {mean.op}


def _mean_of(tensor: Any) -> Any | None:
    """What a tensor is the mean of, over the last axis, which it keeps; None for others."""
    if not is_made_by(tensor, "Mean") or not tensor.op.get_attr("keep_dims"):
        return None
    x, axes = tensor.op.inputs[0], constant(tensor.op.inputs[1])
    rank = x.shape.rank
    return x if axes is not None and rank and list(np.ravel(axes) % rank) == [rank - 1] else None


def _unstopped(tensor: Any) -> Any:
    return tensor.op.inputs[0] if is_made_by(tensor, "StopGradient") else tensor


# --- the kernel ---


def _rewrite(traced: TracedOperations, y: Any, found: _Normalized) -> Rewrite:
    x = narrow_source(found.x)
    y = narrow_result(traced, y, x)
    vectors = found.scale, found.offset
    inputs = [tensor for tensor in (x, *vectors) if tensor is not None]

    def kernel(x: Any, *rest: Any) -> list[Any]:
        given = iter(rest)
        size = x.shape[-1:]
        scale = tf.ones(size) if found.scale is None else tf.reshape(next(given), size)
        offset = tf.zeros(size) if found.offset is None else tf.reshape(next(given), size)
        rows = tf.reshape(x, [-1, *size])
        compute = _forward(found.epsilon, found.centered, x.dtype, y.dtype)
        return [tf.reshape(compute(rows, scale, offset)[0], tf.shape(x))]

    return Rewrite(
        variant=(
            *(found.centered, x.dtype, y.dtype, x.shape.rank),
            *(v if v is None else v.shape.rank for v in vectors),
        ),
        inputs=inputs,
        replaced=[y],
        kernel=kernel,
        operations=frozenset(found.operations),
    )


_ROWS = tf.TensorSpec([None, None], tf.float32)
_ROW = tf.TensorSpec([None], tf.float32)


def _rows_of(kind: Any) -> Any:
    return tf.TensorSpec([None, None], kind)


@functools.cache
def _forward(epsilon: float, centered: bool, given: Any, made: Any) -> XlaFunction:
    """(rows, scale, offset) -> normalized rows, and the mean and the root of each.

    `given` and `made` are the types of the rows, before and after.
    """

    def compute(x: Any, scale: Any, offset: Any) -> list[Any]:
        x = tf.cast(x, tf.float32)
        square = tf.reduce_mean(tf.square(x), -1, keepdims=True)
        mean = tf.zeros_like(square)
        if centered:
            mean = tf.reduce_mean(x, -1, keepdims=True)
            square = tf.reduce_mean(tf.math.squared_difference(x, mean), -1, keepdims=True)
        root = tf.math.rsqrt(square + epsilon)
        return [tf.cast((x - mean) * root * scale + offset, made), mean, root]

    types = [_rows_of(given), _ROW, _ROW]
    return XlaFunction(NAME.replace(" ", "_"), compute, types, _gradients(centered))


def _gradients(centered: bool) -> Any:
    def gradients(operation: Any, gradient: Any, *others: Any) -> list[Any]:
        x, scale, _ = operation.inputs
        _, mean, root = operation.outputs
        gradient = tf.cast(gradient, tf.float32)
        (parts,) = _parts(x.dtype)(x, mean, root, gradient)
        along = scale[:, None] / tf.cast(tf.size(scale), tf.float32)
        one = tf.matmul(gradient, along) if centered else tf.zeros_like(mean)
        (of_x,) = _of_x(x.dtype)(x, mean, root, scale, gradient, one, tf.matmul(parts, along))
        of_x.set_shape(x.shape)
        of_scale, of_offset = (tf.raw_ops.BiasAddGrad(out_backprop=g) for g in (parts, gradient))
        return [of_x, of_scale, of_offset]

    return gradients


@functools.cache
def _parts(kind: Any) -> XlaFunction:
    """(x, mean, root, gradient) -> gradient * h."""
    return XlaFunction(
        "gradient_of_scale",
        lambda x, mean, root, gradient: [gradient * ((tf.cast(x, tf.float32) - mean) * root)],
        [_rows_of(kind), *[_ROWS] * 3],
    )


@functools.cache
def _of_x(kind: Any) -> XlaFunction:
    """(x, mean, root, scale, gradient, mean of a, mean of a * h) -> the gradient of x."""

    def compute(*given: Any) -> list[Any]:
        x, mean, root, scale, gradient, one, other = given
        h = (tf.cast(x, tf.float32) - mean) * root
        return [tf.cast(root * (gradient * scale - one - h * other), kind)]

    types = [_rows_of(kind), *[_ROWS] * 2, _ROW, *[_ROWS] * 3]
    return XlaFunction("gradient_of_rows", compute, types)
