"""Arrays that begin where vectors of numbers may: tensors can take their memory as their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["aligned"]

_ALIGNED = 64  # bytes: what kernels for vectors ask of addresses


def aligned(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """An array of this shape and type that holds anything."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)
