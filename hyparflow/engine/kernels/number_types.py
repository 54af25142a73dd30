"""The types of numbers for which there are kernels: float32, and bfloat16 where it is fast.

A processor without instructions for bfloat16 computes with it through float32, step by step;
whoever takes it there wants its numbers, not its speed. In mixed precision Keras normalizes in
float32 between two conversions; a kernel takes and makes the narrow numbers, in one pass.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels.traced import TracedOperations, is_made_by

__all__ = ["ROUNDING", "is_fast", "is_fast_type", "narrow_result", "narrow_source"]

# What the order of operations may change, relative to the largest number, of a few dozen rows.
ROUNDING = {tf.float32: 2e-5, tf.bfloat16: 2e-2}


def is_fast_type(name: str) -> bool:
    """Whether there are kernels for numbers of the type of this name."""
    return name == "float32" or (name == "bfloat16" and not one_dnn.is_chosen())


def is_fast(*tensors: Any) -> bool:
    """Whether all tensors are of one type for which there are kernels."""
    types = {tensor.dtype.name for tensor in tensors}
    return len(types) == 1 and is_fast_type(types.pop())


def narrow_source(tensor: Any) -> Any:
    """What a tensor of float32 was converted from, if a kernel can take that; else the tensor."""
    if is_made_by(tensor, "Cast") and tensor.dtype == tf.float32:
        source = tensor.op.inputs[0]
        return source if is_fast(source) else tensor
    return tensor


def narrow_result(traced: TracedOperations, tensor: Any, like: Any) -> Any:
    """What a tensor is converted to for all that read it, if to the type of `like`; else itself."""
    readers = [operation for operation, _ in traced.readers(tensor)]
    if len(readers) == 1 and readers[0].type == "Cast":
        (made,) = readers[0].outputs
        return made if made.dtype == like.dtype else tensor
    return tensor
