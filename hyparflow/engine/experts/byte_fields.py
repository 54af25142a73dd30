"""Arrays of several types and lengths in one message, whose lengths travel in front of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["joined_bytes", "split_bytes"]


def joined_bytes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The lengths of arrays, of int32, and then their bytes.

    Args:
        arrays: (n, ...) each.
    """
    lengths = np.array([len(array) for array in arrays], np.int32)
    return np.concatenate([_raw(array) for array in (lengths, *arrays)])


def split_bytes(message: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What `joined_bytes` has joined.

    Args:
        message: flat, of bytes.
        like: of each array, one of the same type and the same axes but the first.
    """
    end = 4 * len(like)
    lengths = message[:end].view(np.int32)
    found = list[np.ndarray]()
    for length, array in zip(lengths.tolist(), like, strict=True):
        shape = (length, *array.shape[1:])
        start, end = end, end + int(np.prod(shape)) * array.dtype.itemsize
        found.append(message[start:end].view(array.dtype).reshape(shape))
    return found


def _raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
