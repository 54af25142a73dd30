"""Several tensors of one type as one buffer that MPI can take, and back, by compiled calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["FlatBuffer"]


class FlatBuffer:
    """A buffer for tensors of given shapes, used step after step.

    Args:
        shapes: of the tensors.
        dtype: their type; those of 16 bits are summed in 32.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype) -> None:
        self._shapes, self._dtype = list(shapes), dtype
        self._sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
        self._array = np.empty(sum(self._sizes), wide)
        self._join = tf.function(self._trace_join, autograph=False)
        self._part = tf.function(self._trace_part, autograph=False)

    def sum(self, values: Sequence[Any], add: Callable[[np.ndarray, np.ndarray], None]) -> Any:
        """The sums of tensors over ranks.

        Args:
            values: this rank's; None counts as zeros.
            add: (this rank's, array for the sum) -> None.
        """
        dense = [None if value is None else tf.convert_to_tensor(value) for value in values]
        add(self._join(dense).numpy(), self._array)
        return self._part(tf.convert_to_tensor(self._array))

    def _trace_join(self, values: list[Any]) -> Any:
        flat = [
            tf.zeros([size], self._array.dtype)
            if value is None
            else tf.cast(tf.reshape(value, [-1]), self._array.dtype)
            for value, size in zip(values, self._sizes, strict=True)
        ]
        return tf.concat(flat, 0)

    def _trace_part(self, flat: Any) -> list[Any]:
        # A split copies; so must what stands in for it, for the buffer is written again.
        several = len(self._sizes) > 1
        parts = tf.split(flat, self._sizes) if several else [tf.raw_ops.DeepCopy(x=flat)]
        return [
            tf.cast(tf.reshape(part, shape), self._dtype)
            for part, shape in zip(parts, self._shapes, strict=True)
        ]
