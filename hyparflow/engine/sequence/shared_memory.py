"""Arrays of numpy whose memory a tensor can take as its own, without a copy (DLPack)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["aligned_copy", "as_tensor"]

_ALIGNED = 64  # bytes: what TensorFlow's kernels for vectors ask of addresses
_KINDS = "fiu"  # floats and integers of numpy: DLPack knows no others


def aligned_copy(tensor: Any) -> np.ndarray:
    """The content of a tensor, in memory of its own that `as_tensor` need not copy."""
    source = np.asarray(tensor)
    memory = np.empty(source.nbytes + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    array = memory[start : start + source.nbytes].view(source.dtype).reshape(source.shape)
    array[...] = source
    return array


def as_tensor(array: np.ndarray) -> Any:
    """An array that `aligned_copy` made, and that nobody changes any more, as a tensor."""
    if array.dtype.kind not in _KINDS or not array.size:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
