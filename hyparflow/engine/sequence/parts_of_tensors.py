"""Whether two parts of a sequence give what the whole of it gives."""

from __future__ import annotations

from enum import Enum

import numpy as np

__all__ = ["Parts", "compare_parts", "padded_positions"]

_TOLERANCE = {"float64": 1e-5, "float32": 1e-3}  # some layers turn by angles in float32


class Parts(Enum):
    """What parts of a tensor are to the whole."""

    SAME = "the same"
    PADDING = "the same but for positions of padding"
    OTHER = "others"
    UNCLEAR = "without an axis of positions"


def compare_parts(
    whole: np.ndarray, first: np.ndarray, second: np.ndarray, there: np.ndarray
) -> Parts:
    """Whether two parts of a tensor make up the whole of it.

    Args:
        whole, first, second: (rows, positions, ...) of a whole sequence and of its parts.
        there: of each row and position, whether it is no padding.
    """
    length = there.shape[1]
    if whole.ndim < 2 or whole.shape[1] != length:
        return Parts.UNCLEAR if whole.dtype.kind == "f" else Parts.SAME
    if first.shape[1] + second.shape[1] != length:
        return Parts.OTHER
    is_number = whole.dtype.kind == "f"
    if whole.ndim > 2 and not is_number:
        return Parts.SAME  # masks of pairs of positions are compared by what attention does
    if whole.shape[2:] != first.shape[2:]:
        return Parts.OTHER
    parts = np.concatenate([first, second], 1)
    same = whole == parts
    if is_number:
        scale = max(float(np.abs(whole).max(initial=0.0)), 1e-30)
        tolerance = scale * _TOLERANCE.get(whole.dtype.name, 0.05)
        same = np.abs(whole.astype(float) - parts.astype(float)) <= tolerance
    of_positions = same.reshape(*whole.shape[:2], -1).all(-1)
    if of_positions.all():
        return Parts.SAME
    rows = there if len(whole) == len(there) else there[:1]
    return Parts.PADDING if of_positions[rows].all() else Parts.OTHER


def padded_positions(rows: int, length: int) -> np.ndarray:
    """Positions that are no padding, of which the first row has less than the first half."""
    there = np.ones((rows, length), bool)
    there[0, max(1, length // 2 - 1) :] = False
    return there
