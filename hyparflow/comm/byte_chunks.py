"""Arrays as MPI takes them: flat bytes, in pieces that one call can take."""

from __future__ import annotations

import numpy as np

__all__ = ["as_bytes", "chunks"]

_CHUNK = 1 << 28  # elements per message: counts above 2**31 - 1 overflow in MPI 3


def as_bytes(array: np.ndarray) -> np.ndarray:
    """A flat view of the bytes of a contiguous array."""
    if array.size == 0:
        return np.zeros(0, np.uint8)
    return array.reshape(-1).view(np.uint8)


def chunks(flat: np.ndarray) -> list[np.ndarray]:
    """`flat` in pieces that one MPI call can take; at least one piece, so that both ends agree."""
    return [flat[i : i + _CHUNK] for i in range(0, max(1, flat.size), _CHUNK)]
