"""Values between, and beyond, those that are known."""

from __future__ import annotations

import numpy as np

__all__ = ["at_rows"]


def at_rows(known: tuple[int, ...], rows: float) -> np.ndarray:
    """Weights of the known sizes that give the value at `rows`, on straight lines."""
    at = np.zeros(len(known))
    if len(known) == 1:
        at[0] = rows / known[0]
        return at
    right = int(np.clip(np.searchsorted(known, rows), 1, len(known) - 1))
    low, high = known[right - 1], known[right]
    at[right] = (rows - low) / (high - low)
    at[right - 1] = 1 - at[right]
    return at
