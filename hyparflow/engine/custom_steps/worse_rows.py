"""What a step computes for rows that are worse than those of the first batches.

A step that clips gradients, or leaves out an update whose gradients are not finite, computes the
same as another until such rows come; then a replica without them goes on where one process would
not. So the step is tried with rows that are large, and with one that is not finite.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from hyparflow.engine.custom_steps.kinds import NEITHER, Key, group_of, kind_of
from hyparflow.engine.custom_steps.trial import FEW, Run, few_rows, joined, mapped, row_count
from hyparflow.pipeline.row_span import RowSpan

__all__ = ["LARGE", "NOT_FINITE", "coupled_for_worse_rows"]

LARGE = "rows of large values"
NOT_FINITE = "rows that are not finite"
_TIMES = 100
_LIMIT = 0.05  # large values enlarge rounding, too
_ROUNDING = 1e-3  # a gradient this small next to the others of its call may be rounding only
_PRECISE = ("float32", "float64")


def coupled_for_worse_rows(run: Run, data: Any, dtype: str) -> dict[str, set[Key]]:
    """The values that are neither a mean nor a sum for such rows, by what the rows are.

    If the step raises an error for such rows, nothing is known.

    Args:
        run: runs the step.
        data: the replica's batch.
        dtype: the type in which the step computes.
    """
    _, one, other = few_rows(data, FEW)
    found = {}
    if dtype in _PRECISE:
        found[LARGE] = _coupled(run, _changed(one, _enlarged), other)
    found[NOT_FINITE] = _coupled(run, one, _changed(other, _spoilt))
    return {words: keys for words, keys in found.items() if keys}


def _coupled(run: Run, one: Any, other: Any) -> set[Key]:
    half = row_count(one)
    try:
        with np.errstate(all="ignore"):
            whole = run(joined([one, other]), RowSpan(0, 2 * half, 2 * half))
            first = run(one, RowSpan(0, half, 2 * half))
            second = run(other, RowSpan(half, half, 2 * half))
    except (Exception, SystemExit):  # the user's code may end the job where a loss is not finite
        return set()
    finite = {
        key: arrays
        for key in whole.values
        if (arrays := _finite([seen.values.get(key) for seen in (whole, first, second)]))
    }
    sizes = {key: max(float(np.linalg.norm(x)) for x in arrays) for key, arrays in finite.items()}
    largest: dict[Key, float] = {}
    for key, size in sizes.items():
        largest[group_of(key)] = max(size, largest.get(group_of(key), 0.0))
    return {
        key
        for key, (total, *parts) in finite.items()
        if kind_of(total, parts, _LIMIT, largest[group_of(key)] * _ROUNDING) == NEITHER
    }


def _finite(values: list[np.ndarray | None]) -> list[np.ndarray]:
    """The numbers that are finite in all runs; nothing if there are none."""
    if any(x is None or x.shape != values[0].shape for x in values):  # type: ignore[union-attr]
        return []
    arrays = [np.asarray(x, float) for x in values]
    finite = np.logical_and.reduce([np.isfinite(x) for x in arrays])
    return [x[finite] for x in arrays] if finite.any() else []


def _changed(data: Any, change: Any) -> Any:
    """A batch with its inputs and labels changed where they are floats; weights of samples stay."""
    parts = data if isinstance(data, tuple) else (data,)
    changed = tuple(
        part if number == 2 else mapped(lambda x: change(x) if _is_float(x) else x, part)
        for number, part in enumerate(parts)
    )
    return changed if isinstance(data, tuple) else changed[0]


def _is_float(x: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))


def _enlarged(x: Any) -> Any:
    return x * _TIMES


def _spoilt(x: Any) -> Any:
    """The last row is not finite."""
    rows = keras.ops.ones((len(x) - 1, *x.shape[1:]), x.dtype)
    return x * keras.ops.concatenate([rows, keras.ops.full((1, *x.shape[1:]), np.nan, x.dtype)], 0)
