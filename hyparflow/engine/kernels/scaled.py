"""In inference: scaling and shifting by channel in one pass.

That is what batch normalization by moving statistics comes to. oneDNN's normalization computes it
with a mean of 0 and a variance of 1.

Proof: (x - 0) / sqrt(1) * scale + offset.

Gain: 2.2 times as fast with 16 channels, 1.3 with 32 on an AMD EPYC (Zen 1); with more, none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels.number_types import is_fast
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations, is_made_by, is_vector

__all__ = ["NAME", "find"]

NAME = "scaled channels"
_MANY = 32  # channels


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The tensors x * scale + offset of images."""
    if one_dnn.is_chosen():
        for operation in traced.operations:
            if operation.type == "AddV2" and is_fast(*operation.inputs):
                found = _rewrite(traced, operation)
                if found is not None:
                    yield found


def _rewrite(traced: TracedOperations, total: Any) -> Rewrite | None:
    (product, offset), made = total.inputs, total.outputs[0]
    if not is_made_by(product, "Mul") or len(traced.readers(product)) > 1:
        return None
    x, scale = product.op.inputs
    if made.shape.rank != 4 or not made.shape[1:].is_fully_defined() or made.shape[-1] > _MANY:
        return None
    if x.shape.as_list() != made.shape.as_list():
        return None
    if not is_vector(offset, made.shape[-1]) or not is_vector(scale, made.shape[-1]):
        return None
    size = x.shape[-1:]

    def kernel(x: Any, scale: Any, offset: Any) -> list[Any]:
        y = one_dnn.scaled(x, tf.reshape(scale, size), tf.reshape(offset, size))
        return [tf.reshape(y, [-1, *x.shape[1:]])]

    return Rewrite(
        variant=(scale.shape.rank, offset.shape.rank),
        inputs=[x, scale, offset],
        replaced=[made],
        kernel=kernel,
        operations=frozenset([total, product.op]),
        without_gradient=[made],
    )
