"""Whether a model's outputs for some rows depend on other rows.

One row is changed, strongly, and the outputs for the others are looked at: where rows are treated
alone these stay the same to the last bit, however large the outputs are. Small, large and negative
rows are tried, with and without training, with the weights as they are and of unit size.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.trials.rows_trial import RowsTrial
from hyparflow.model.random_rows import random_rows

__all__ = ["mixes_rows"]

# (which row is changed, what its numbers are multiplied by: 0 for new ones)
_CHANGES = ((1, 0.0), (0, 100.0), (-1, -100.0))
_EPSILONS = {"float64": 2.3e-16, "float32": 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3}
_ROUNDINGS = 64  # what kernels may round differently, in units of the last place
_REPEATS = 8  # of equal runs, before it is said that rows are mixed
_NOISE = 100  # times what two equal runs differ by, where a layer draws numbers of its own


def mixes_rows(trial: RowsTrial) -> bool:
    """Whether outputs for some rows depend on others.

    Args:
        trial: an open trial.
    """
    with np.errstate(all="ignore"):
        if _mixes(trial, False, _CHANGES) or _mixes(trial, True, _CHANGES[:2]):
            return True
        with trial.unit_weights():
            return _mixes(trial, True, (_CHANGES[0], _CHANGES[2]))


def _mixes(trial: RowsTrial, training: bool, changes: tuple[tuple[int, float], ...]) -> bool:
    base, again = (trial.run(trial.inputs, training) for _ in range(2))
    if any(x.ndim == 0 or x.shape[0] % trial.rows for x in base):
        return True  # no row of this belongs to one of the batch
    for row, factor in changes:
        row %= trial.rows
        changed = trial.run(_changed(trial.inputs, row, factor), training)
        for old, repeated, new in zip(base, again, changed, strict=True):
            if old.shape != new.shape or _others_differ(trial.rows, row, old, repeated, new):
                return _is_sure(trial, training, row, base, changed)
    return False


def _is_sure(
    trial: RowsTrial, training: bool, row: int, base: list[np.ndarray], changed: list[np.ndarray]
) -> bool:
    """Whether no equal run differs as the changed one does: what drops rows at random may."""
    for _ in range(_REPEATS):
        again = trial.run(trial.inputs, training)
        triples = list(zip(base, again, changed, strict=True))
        if not any(
            old.shape != new.shape or _others_differ(trial.rows, row, old, repeated, new)
            for old, repeated, new in triples
        ):
            return False
    return True


def _changed(inputs: Any, row: int, factor: float) -> Any:
    """`inputs` with other numbers in one row."""
    seeds = itertools.count(1, 2)

    def change(x: Any) -> Any:
        values = x.numpy()
        if x.dtype.is_floating:
            fresh = random_rows(x.shape, x.dtype.name, next(seeds)).numpy()[row]
            values[row] = np.abs(fresh) * factor if factor else fresh
        elif x.dtype == tf.bool:
            values[row] = ~values[row]
        else:
            values[row] = 1 - values[row]  # whole ones are 0 or 1
        return tf.constant(values)

    return keras.tree.map_structure(change, inputs)


def _others_differ(
    rows: int, row: int, old: np.ndarray, repeated: np.ndarray, new: np.ndarray
) -> bool:
    """Whether an output differs in other rows than the one that was changed."""
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
