"""What layers add to the loss: a mean over the rows of a batch, a sum, or neither.

If a layer adds a tensor, Keras adds up its values. So one value per row is a sum over the rows, as
`reduce_sum` is. A value that does not depend on the rows counts as a mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyparflow.engine.trials.rows_trial import RowsTrial
from hyparflow.model.experts.balanced_layers import BalancedLayers, sum_over_tokens
from hyparflow.model.keras_internals.layers import added_losses as keras_added_losses
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["AddedLoss", "added_losses"]

_TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
_DRAWS = 4  # trials of a random loss


class AddedLoss(NamedTuple):
    """A loss that a layer adds.

    Attributes:
        layer: number of the layer in the model.
        position: its position among the losses that the layer adds.
        kind: "mean", "sum", or "other".
    """

    layer: int
    position: int
    kind: str


def added_losses(trial: RowsTrial) -> list[AddedLoss]:
    """The kind of each loss that layers add, with and without training.

    Args:
        trial: an open trial.
    """
    kinds: dict[tuple[int, int], set[str]] = {}
    # Of losses that balance experts, ranks add up parts: `hyparflow.engine.experts.balance_sums`.
    with BalancedLayers(all_layers(trial.model)).computed_by(sum_over_tokens):
        for training in (True, False):
            for key, kind in _kinds(trial, training).items():
                kinds.setdefault(key, set()).add(kind)
        with trial.unit_weights():
            for key, kind in _kinds(trial, True).items():
                kinds.setdefault(key, set()).add(kind)
    found = []
    for (layer, position), names in kinds.items():
        names.discard("zero")  # zero may be either
        kind = "mean" if not names else names.pop() if len(names) == 1 else "other"
        found.append(AddedLoss(layer, position, kind))
    return found


Losses = dict[tuple[int, int], np.ndarray]


def _losses(trial: RowsTrial, start: int, stop: int, training: bool) -> Losses:
    trial.call(trial.take(start, stop), training)
    added = keras_added_losses(trial.model)
    return {key: np.sum(np.asarray(loss)) for key, loss in added.items()}


def _kinds(trial: RowsTrial, training: bool) -> dict[tuple[int, int], str]:
    trial.restore()
    rows = trial.rows
    with np.errstate(all="ignore"):
        whole, again = (_losses(trial, 0, rows, training) for _ in range(2))
        parts = (_losses(trial, 0, trial.cut, training), _losses(trial, trial.cut, rows, training))
        kinds = {}
        for key, value in whole.items():
            if any(key not in part for part in (again, *parts)):
                kinds[key] = "other"
            elif value == again[key]:
                first, second = (part[key] for part in parts)
                kinds[key] = _kind(value, first, second, trial.cut / rows)
            else:
                kinds[key] = _random_kind(trial, key, training)
    return kinds


def _kind(whole: np.ndarray, first: np.ndarray, second: np.ndarray, share: float) -> str:
    tolerance = _TOLERANCE.get(whole.dtype.name, 0.05)
    size = float(max(abs(whole), abs(first), abs(second)))
    if not np.isfinite(size) or size == 0:
        return "zero"
    expected = {"mean": share * first + (1 - share) * second, "sum": first + second}
    alike = [kind for kind, x in expected.items() if abs(float(whole - x)) <= tolerance * size]
    return alike[0] if alike else "other"


def _random_kind(trial: RowsTrial, key: tuple[int, int], training: bool) -> str:
    """The kind of a loss that draws random numbers: does it grow with the number of rows?"""
    wholes = [_losses(trial, 0, trial.rows, training)[key] for _ in range(_DRAWS)]
    starts = list(range(0, trial.rows, trial.cut)) * _DRAWS
    parts = [_losses(trial, n, n + trial.cut, training)[key] for n in starts[:_DRAWS]]
    whole, part = (float(np.mean(np.abs(values))) for values in (wholes, parts))
    if not part:
        return "zero"
    return "sum" if whole > part * (trial.rows / trial.cut) ** 0.5 else "mean"
