"""Products of two matrices by oneDNN, in training: gradients multiply with transposed matrices.

TensorFlow's own kernel goes down the columns of a transposed matrix, which for few rows and a
matrix of a thousand numbers a row or more takes several times as long.

Proof: the same sums; only their order differs.

Gain: the gradient of 32 rows with a matrix of 4096 x 4096 took 44 ms instead of 325, with one of
256 x 1024 1.1 instead of 4.0 (one core of an AMD EPYC, Zen 1). Forward both kernels are as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels.number_types import is_fast
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations

__all__ = ["NAME", "find", "gains", "matrix_product"]

NAME = "product"
_LONG = 512  # numbers of a row of a matrix
_TRIAL = (5, 7, 6)  # rows of the first matrix, numbers that are added up, columns of the second


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    if not isinstance(layer, keras.layers.Dense) or not layer.built:
        return False
    return layer.units >= _LONG and one_dnn.is_chosen()


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The products of matrices with long rows."""
    if one_dnn.is_chosen():
        for operation in traced.operations:
            if operation.type == "MatMul" and _is_large(operation):
                yield _rewrite(operation)


def _is_large(operation: Any) -> bool:
    long = any((x.shape[-1] or 0) >= _LONG for x in operation.inputs)
    return long and is_fast(*operation.inputs)


def matrix_product(x: Any, y: Any, transpose_x: bool, transpose_y: bool) -> Any:
    """The product of two matrices by the kernel whose gradients are faster."""
    if one_dnn.is_chosen():
        return one_dnn.product(x, y, transpose_x, transpose_y)
    return tf.linalg.matmul(x, y, transpose_a=transpose_x, transpose_b=transpose_y)


def _rewrite(operation: Any) -> Rewrite:
    flags = operation.get_attr("transpose_a"), operation.get_attr("transpose_b")
    rows, summed, columns = _TRIAL
    shapes = [rows, summed], [summed, columns]
    return Rewrite(
        variant=flags,
        inputs=list(operation.inputs),
        replaced=list(operation.outputs),
        kernel=lambda x, y: [matrix_product(x, y, *flags)],
        operations=frozenset([operation]),
        trial=[shape[::-1] if flag else shape for shape, flag in zip(shapes, flags, strict=True)],
    )
