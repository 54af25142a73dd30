"""Batch normalization in training, by TensorFlow's fused kernel.

Keras writes it out: y = x * factor + (offset - mean * factor) with factor = scale / sqrt(variance +
epsilon), where mean and variance are those of x over all axes but the last (Ioffe and Szegedy,
2015). The kernel computes the same in fewer passes over x, and its gradient needs x, mean and
variance only.

Proof: mean and y of the kernel are those of the formula; its variance is the unbiased one, n /
(n - 1) times that of the formula, so it is multiplied by (n - 1) / n for whoever else reads it. Its
gradient takes that of y alone: where mean or variance have another way to what is differentiated,
nothing is rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled import one_dnn
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

NAME = "batch normalization"


class _Normalized(NamedTuple):
    """What y = x * factor + (offset - mean * factor) is made of, and the operations between."""

    x: Any
    mean: Any
    variance: Any
    scale: Any | None
    offset: Any | None
    epsilon: float
    operations: set[Any]


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    return isinstance(layer, keras.layers.BatchNormalization)


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The normalizations that the kernel computes."""
    for operation in traced.operations:
        if operation.type == "AddV2" and operation.outputs[0].dtype == tf.float32:
            found = _normalized(operation)
            if found is not None and _is_of_batch(found):
                yield _rewrite(traced, operation.outputs[0], found)


def _normalized(operation: Any) -> _Normalized | None:
    product, shift = operation.inputs
    if not is_made_by(product, "Mul") or not is_made_by(shift, "Sub", "Mul"):
        return None
    x, factor = product.op.inputs
    offset, moved = shift.op.inputs if is_made_by(shift, "Sub") else (None, shift)
    if not is_made_by(moved, "Mul") or moved.op.inputs[1] is not factor:
        return None
    mean, between = moved.op.inputs[0], {operation, product.op, shift.op, moved.op, factor.op}
    if offset is None:
        if not is_made_by(mean, "Neg"):
            return None
        between.add(mean.op)
        mean = mean.op.inputs[0]
    root, scale = factor.op.inputs if is_made_by(factor, "Mul") else (factor, None)
    known = inverse_root(root)
    if known is None:
        return None
    variance, epsilon, operations = known
    return _Normalized(
        x=x,
        mean=mean,
        variance=variance,
        scale=scale,
        offset=offset,
        epsilon=epsilon,
        operations=between | operations,
    )


def _is_of_batch(found: _Normalized) -> bool:
    """Whether mean and variance are those of x, one for each place of its last axis."""
    mean, variance = without_views(found.mean), without_views(found.variance)
    rank = found.x.shape.rank
    if rank is None or rank < 2 or found.x.shape[-1] is None:
        return False
    vectors = [found.mean, found.variance, found.scale, found.offset]
    if any(v is not None and not is_vector(v, found.x.shape[-1]) for v in vectors):
        return False
    if not _is_mean_over_rows(mean, rank) or not _is_mean_over_rows(variance, rank):
        return False
    deviations = variance.op.inputs[0]
    if mean.op.inputs[0] is not found.x or not is_made_by(deviations, "SquaredDifference"):
        return False
    x, middle = deviations.op.inputs
    if is_made_by(middle, "StopGradient"):
        found.operations.add(middle.op)
        middle = middle.op.inputs[0]
    found.operations.add(deviations.op)
    return x is found.x and middle is mean


def _is_mean_over_rows(tensor: Any, rank: int) -> bool:
    if not is_made_by(tensor, "Mean"):
        return False
    axes = constant(tensor.op.inputs[1])
    return axes is not None and sorted(np.ravel(axes) % rank) == list(range(rank - 1))


def _rewrite(traced: TracedOperations, y: Any, found: _Normalized) -> Rewrite:
    x = narrow_source(found.x)
    made = narrow_result(traced, y, x)
    x = x if x.dtype == made.dtype else found.x  # the kernel has one type for both
    moments = [without_views(found.mean), without_views(found.variance)]
    vectors = found.scale, found.offset
    inputs = [tensor for tensor in (x, *vectors) if tensor is not None]

    def kernel(x: Any, *rest: Any) -> list[Any]:
        given = iter(rest)
        size = x.shape[-1:]
        scale = tf.ones(size) if found.scale is None else tf.reshape(next(given), size)
        offset = tf.zeros(size) if found.offset is None else tf.reshape(next(given), size)
        y, mean, variance = _fused(x, scale, offset, found.epsilon)
        shapes = [[1] * (x.shape.rank - 1) + size if m.shape.rank > 1 else size for m in moments]
        return [y, tf.reshape(mean, shapes[0]), tf.reshape(variance, shapes[1])]

    return Rewrite(
        variant=(x.dtype, x.shape.rank, *(v if v is None else v.shape.rank for v in vectors)),
        inputs=inputs,
        replaced=[made, *moments],
        kernel=kernel,
        operations=frozenset(found.operations),
        without_gradient=moments,
    )


def _fused(x: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """y, mean and variance of x."""
    rows = x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])
    compute = one_dnn.normalized if one_dnn.is_chosen() else _normalized_by_tensorflow
    y, mean, variance = compute(rows, scale, offset, epsilon)
    count = tf.cast(tf.size(rows) // rows.shape[-1], tf.float32)
    y = y if rows is x else tf.reshape(y, tf.shape(x))
    return y, mean, variance * ((count - 1.0) / count)


def _normalized_by_tensorflow(
    x: Any, scale: Any, offset: Any, epsilon: float
) -> tuple[Any, Any, Any]:
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=tf.constant([], tf.float32),
        variance=tf.constant([], tf.float32),
        epsilon=epsilon,
        exponential_avg_factor=1.0,
        data_format="NHWC",
        is_training=True,
    )
    return y, mean, variance
