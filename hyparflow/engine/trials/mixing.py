"""Whether a model's outputs for some rows depend on other rows.

One row is changed, strongly, and the outputs for the other rows are compared: if rows are treated
alone, these stay the same to the last bit, however large the outputs are. Small, large and negative
rows are tried, with and without training, with the present weights and with weights of unit size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.trials.mixing_layers import mixing_layers
from hyparflow.engine.trials.other_rows import others_differ
from hyparflow.engine.trials.rows_trial import RowsTrial
from hyparflow.model.random_rows import random_rows

__all__ = ["Mixing", "find_mixing"]

# (the row that is changed, the factor of its numbers; 0 for new numbers)
_CHANGES = ((1, 0.0), (0, 100.0), (-1, -100.0))
_REPEATS = 8  # equal runs, before mixing is reported


@dataclass(frozen=True)
class Mixing:
    """A change of one row by which outputs for other rows changed.

    Attributes:
        layers: names of the layers that mixed rows, as far as they were found.
    """

    layers: list[str]


def find_mixing(trial: RowsTrial) -> Mixing | None:
    """Whether outputs for some rows depend on others, and which layers make them do so.

    Args:
        trial: an open trial.
    """
    with np.errstate(all="ignore"):
        found = _mixing(trial, False, _CHANGES) or _mixing(trial, True, _CHANGES[:2])
        if found is not None:
            return found
        with trial.unit_weights():
            return _mixing(trial, True, (_CHANGES[0], _CHANGES[2]))


def _mixing(
    trial: RowsTrial, training: bool, changes: tuple[tuple[int, float], ...]
) -> Mixing | None:
    base, again = (trial.run(trial.inputs, training) for _ in range(2))
    lost = any(x.ndim == 0 or x.shape[0] % trial.rows for x in base)  # rows of the batch
    for row, factor in changes:
        row %= trial.rows
        inputs = _changed(trial.inputs, row, factor)
        if not lost:
            changed = trial.run(inputs, training)
            if not _show(trial, row, base, again, changed):
                continue
            if not _is_sure(trial, training, row, base, changed):
                return None
        return Mixing(mixing_layers(trial, inputs, row, training))
    return None


def _show(
    trial: RowsTrial,
    row: int,
    base: list[np.ndarray],
    again: list[np.ndarray],
    changed: list[np.ndarray],
) -> bool:
    """Whether any output shows that another row was changed."""
    triples = zip(base, again, changed, strict=True)
    return any(
        old.shape != new.shape or others_differ(trial.rows, row, old, repeated, new)
        for old, repeated, new in triples
    )


def _is_sure(
    trial: RowsTrial, training: bool, row: int, base: list[np.ndarray], changed: list[np.ndarray]
) -> bool:
    """Whether no equal run differs as much; a layer that drops rows at random may differ."""
    for _ in range(_REPEATS):
        again = trial.run(trial.inputs, training)
        if not _show(trial, row, base, again, changed):
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
            values[row] = 1 - values[row]  # integers are 0 or 1
        return tf.constant(values)

    return keras.tree.map_structure(change, inputs)
