"""Whether an output for some rows has changed, beyond rounding and chance."""

from __future__ import annotations

import numpy as np

__all__ = ["others_differ"]

_EPSILONS = {"float64": 2.3e-16, "float32": 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3}
_ROUNDINGS = 64  # rounding differences of kernels, in units of the last place
_NOISE = 100  # times the difference of two equal runs, if a layer draws random numbers


def others_differ(
    rows: int, row: int, old: np.ndarray, repeated: np.ndarray, new: np.ndarray
) -> bool:
    """Whether an output differs in other rows than the one that was changed.

    Args:
        rows: the number of rows.
        row: the row that was changed.
        old, repeated: the outputs of two equal runs before the change.
        new: the output after the change.
    """
    epsilon = _EPSILONS.get(old.dtype.name, 0.0)
    others = [n for n in range(rows) if n != row]
    if not epsilon:
        if old.dtype.kind not in "biu" or not np.array_equal(old, repeated):
            return False
        return not np.array_equal(_rows(old, rows)[others], _rows(new, rows)[others])
    old, repeated, new = (_rows(x.astype(np.float64), rows)[others] for x in (old, repeated, new))
    if old.shape[1] == 0:
        return False
    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)):
        return bool(np.array_equal(finite, np.isfinite(repeated)))
    old, repeated, new = (np.where(finite, x, 0.0) for x in (old, repeated, new))
    limit = _ROUNDINGS * epsilon * np.abs(old).max(initial=0.0)
    limit += _NOISE * np.nan_to_num(np.abs(repeated - old)).max(initial=0.0)
    return bool(np.abs(new - old).max(initial=0.0) > limit)


def _rows(values: np.ndarray, rows: int) -> np.ndarray:
    return values.reshape(rows, -1)
