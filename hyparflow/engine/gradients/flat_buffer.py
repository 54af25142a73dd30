"""Packs tensors of one type into one buffer for MPI, and unpacks it, by compiled calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.half_precision_sum import Add
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer

__all__ = ["FlatBuffer", "adder", "buckets", "carried_type"]

_LARGE = 1 << 20  # bytes; copying a larger tensor costs more than a sum of its own
_COMPRESSED = {"bf16": tf.bfloat16, "fp16": tf.float16}


def carried_type(dtype: np.dtype, compression: str | None) -> np.dtype:
    """The type in which numbers are sent: 32 bits for those of 16, unless they are compressed."""
    if not tf.as_dtype(dtype).is_floating:
        return dtype
    if compression is not None:
        return np.dtype(_COMPRESSED[compression].as_numpy_dtype)
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


@functools.cache
def adder(dtype: np.dtype) -> Add:
    """A function that adds up rows of 16 bits in 32; compiled, since NumPy is much slower."""

    def trace(rows: Any) -> Any:
        return tf.cast(tf.reduce_sum(tf.cast(rows, tf.float32), 0), dtype)

    signature = [tf.TensorSpec([None, None], dtype)]
    compiled = tf.function(trace, autograph=False, input_signature=signature)
    return lambda rows: np.asarray(compiled(tf.convert_to_tensor(rows)))


def buckets(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]) -> list[list[int]]:
    """Which tensors are summed together: a large one alone, the small ones of each type."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    buckets = [[i] for i, size in enumerate(sizes) if size >= _LARGE]
    for dtype in dict.fromkeys(dtypes):
        small = [i for i, size in enumerate(sizes) if size < _LARGE and dtypes[i] == dtype]
        buckets += [small] * bool(small)
    return buckets


class FlatBuffer:
    """Packs tensors of given shapes, and unpacks them; a single tensor is not copied.

    Args:
        shapes: of the tensors.
        dtype: their type.
        carried: their type in the buffer.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype, carried: np.dtype
    ) -> None:
        self._shapes, self._dtype, self._carried = list(shapes), dtype, carried
        self._sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        self._join = FixedFunction(self._trace_join)
        self._part = FixedFunction(self._trace_part)

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return sum(self._sizes) * self._carried.itemsize

    def pack(self, values: Sequence[Any]) -> np.ndarray:
        """Tensors as one array; None counts as zeros."""
        dense = [None if value is None else tf.convert_to_tensor(value) for value in values]
        return np.asarray(self._join(dense))

    def empty(self) -> TensorBuffer:
        """A new buffer of the same size."""
        return TensorBuffer([sum(self._sizes)], self._carried)

    def unpack(self, joined: TensorBuffer) -> list[Any]:
        """The tensors in a buffer."""
        return list(self._part([joined.tensor]))

    def _trace_join(self, values: list[Any]) -> Any:
        flat = [
            tf.zeros([size], self._carried)
            if value is None
            else tf.cast(tf.reshape(value, [-1]), self._carried)
            for value, size in zip(values, self._sizes, strict=True)
        ]
        return tf.concat(flat, 0) if len(flat) > 1 else flat[0]

    def _trace_part(self, tensors: list[Any]) -> list[Any]:
        (flat,) = tensors
        parts = tf.split(flat, self._sizes) if len(self._sizes) > 1 else [flat]
        return [
            tf.cast(tf.reshape(part, shape), self._dtype)
            for part, shape in zip(parts, self._shapes, strict=True)
        ]
