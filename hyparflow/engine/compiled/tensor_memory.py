"""Memory of TensorFlow that MPI can write to, so that received tensors need not be copied.

A tensor made of an array is a copy of it, in newly allocated memory. Here the tensor is made first:
TensorFlow's allocator gives the memory of one step to the next. A tensor must not change
once anything has read it; so the array is written to before the tensor is given away.

Relies on the array of a tensor being the tensor's own memory. Gain: without it a message
of 1 or 4 MiB took 90 and 110 % more processor time to be written and taken, one of 64 KiB 27 %
less, and a step of small layers nothing that could be seen (``benchmarks/border``). Seen to work
on TensorFlow 2.21 with Keras 3.15. Without it the tensor is made of an array, a copy.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["TensorMemory"]

_PLAIN = {1: tf.uint8, 2: tf.uint16}  # by size: for types that numpy itself does not know


class TensorMemory:
    """A tensor whose content is received.

    Args:
        shape, dtype: of the tensor.

    Attributes:
        array: its memory; must be written before `tensor` is called.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._dtype = tf.as_dtype(dtype)
        stored = self._dtype if dtype.isbuiltin == 1 else _PLAIN[dtype.itemsize]
        with tf.device("CPU:0"):
            self._tensor = tf.raw_ops.Empty(shape=_as_tensor(shape), dtype=stored)
        view = np.asarray(self._tensor)  # the same memory, read-only
        memory = (ctypes.c_char * view.nbytes).from_address(view.ctypes.data)
        self.array = np.ndarray(shape, dtype, memory)  # type: ignore[arg-type]

    def tensor(self) -> Any:
        """The tensor; it shares its memory with `array`, but for floats of 8 bits."""
        if self._tensor.dtype == self._dtype:
            return self._tensor
        if self._dtype.size == 1:  # TensorFlow cannot see bytes as numbers of 8 bits
            return tf.convert_to_tensor(self.array)
        return tf.bitcast(self._tensor, self._dtype)


@functools.lru_cache(1024)
def _as_tensor(shape: tuple[int, ...]) -> Any:
    """A shape as TensorFlow takes it; to make this takes longer than the memory."""
    return tf.constant(shape, tf.int32 if max(shape, default=0) < 1 << 31 else tf.int64)
