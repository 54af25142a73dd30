"""Arrays as MPI takes them: flat bytes, in pieces that one call can take."""

from __future__ import annotations

import numpy as np

__all__ = ["as_bytes", "chunks", "longest_chunk", "unsized_chunks"]

_CHUNK = 1 << 28  # elements per message: counts above 2**31 - 1 overflow in MPI 3


def as_bytes(array: np.ndarray) -> np.ndarray:
    """A flat view of the bytes of a contiguous array."""
    if array.size == 0:
        return np.zeros(0, np.uint8)
    return array.reshape(-1).view(np.uint8)


def chunks(flat: np.ndarray) -> list[np.ndarray]:
    """`flat` in pieces that one MPI call can take; at least one piece, so that both ends agree."""
    return [flat[i : i + _CHUNK] for i in range(0, max(1, flat.size), _CHUNK)]


def longest_chunk() -> int:
    """The most elements of a piece."""
    return _CHUNK


def unsized_chunks(flat: np.ndarray) -> list[np.ndarray]:
    """`flat` in pieces, of which the last alone is shorter than the longest, so that it is known.

    Args:
        flat: bytes.
    """
    found = chunks(flat)
    return [*found, flat[:0]] if found[-1].size == _CHUNK else found
