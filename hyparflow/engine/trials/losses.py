"""Tries each loss on a few rows, whole and in parts: is it, and its gradient, the sum of its parts?

The values and gradients that training computes from the parts are compared with those of Keras for
the whole, so any loss can be tried, also a class with its own `__call__`. A loss that gives one
number for a batch may be a mean over its rows, or a sum; the trial tells which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from hyparflow.engine.batch import slice_rows
from hyparflow.engine.compiled.gradients_of import gradients_of
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.model.keras_internals.layers import set_mask
from hyparflow.model.reachable_variables import reachable_variables

__all__ = ["ENDS", "LossFindings", "Tried", "kept_variables", "sums_up", "try_losses"]

ENDS = (0, 3, 10)  # of parts of two sizes, so that a sum and a mean differ
_TOLERANCE = 1e-4  # relative, in float32
_NOTHING = 1e-10  # smaller numbers are rounding errors


@dataclass
class LossFindings:
    """Names of losses that do not add up.

    Attributes:
        coupled: value or gradient is not the sum over parts of the batch.
        changing: they change variables at each call.
    """

    coupled: list[str] = field(default_factory=list)
    changing: list[str] = field(default_factory=list)


@dataclass
class Tried:
    """The results of a loss for some rows."""

    value: float
    gradients: list[np.ndarray]  # in the order of the outputs
    weight: Any  # W of each loss, if it is needed
    rows: int


def try_losses(terms: LossTerms, batch: Any) -> LossFindings:
    """Try `terms` on a batch of ten rows, and teach them which single numbers are sums or means.

    Losses that cannot take these data are accepted untried.

    Args:
        terms: the losses.
        batch: (y, y_pred, sample weights or None).
    """
    findings = LossFindings()
    for number, name in enumerate(terms.names):
        adds_up: bool | None = None
        with kept_variables(terms.losses[number]) as changed:
            try:
                with np.errstate(all="ignore"):
                    adds_up = _try_loss(terms, number, batch)
            except Exception:  # if training fails, too, it fails as in plain Keras
                pass
        if changed and adds_up is not None:
            findings.changing.append(name)
        elif adds_up is False:
            findings.coupled.append(name)
    return findings


@contextlib.contextmanager
def kept_variables(loss: Any) -> Iterator[list[Any]]:
    """Afterwards the variables that `loss` leads to are as before, and the list has the changed."""
    variables = [v for v in reachable_variables([loss]) if not _is_seed(v)]
    before = [v.numpy() for v in variables]
    changed: list[Any] = []
    try:
        yield changed
    finally:
        for variable, old in zip(variables, before, strict=True):
            if not np.array_equal(variable, old):
                variable.assign(old)
                changed.append(variable)


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in str(getattr(variable, "path", ""))


def _try_loss(terms: LossTerms, number: int, batch: Any) -> bool:
    """Whether a loss is the sum of its parts; of one number, as a mean or as a sum over rows."""
    tried, again = _try(terms, number, batch), _try(terms, number, batch)
    pairs = zip(tried, again, strict=True)
    if any(a.value != b.value and np.isfinite(a.value) for a, b in pairs):
        return True  # it draws random numbers, so nothing can be compared
    if not terms.is_one_number(number):
        return sums_up(terms, number, tried)
    for is_sum in (False, True):
        terms.note(number, is_known=True, is_sum=is_sum)
        if sums_up(terms, number, tried):
            break
    else:
        terms.note(number, is_known=False, is_sum=False)
        return False
    # A mean over all values is no mean over the unmasked ones.
    mask = np.arange(ENDS[-1]) % 4 != 1
    if terms.masked and not sums_up(terms, number, _try(terms, number, batch, mask)):
        terms.note(number, is_known=False)
    return True


def _try(terms: LossTerms, number: int, batch: Any, mask: Any = None) -> list[Tried]:
    """The whole batch, and its parts."""
    pieces = [(0, ENDS[-1]), *zip(ENDS[:-1], ENDS[1:], strict=True)]
    return [_try_rows(terms, number, batch, mask, *piece) for piece in pieces]


def _try_rows(terms: LossTerms, number: int, batch: Any, mask: Any, start: int, stop: int) -> Tried:
    y, y_pred, sample_weight = slice_rows(batch, start, stop)
    outputs = [x for x in keras.tree.flatten(y_pred) if x is not None]
    for x in () if mask is None else outputs:
        shape = (len(mask), *x.shape[1:-1])
        flags = np.broadcast_to(mask.reshape(-1, *[1] * (len(shape) - 1)), shape)[start:stop]
        set_mask(x, keras.ops.convert_to_tensor(flags.copy()))
    found: list[Any] = []

    def value() -> list[Any]:
        found.append(terms.alone(number, y, y_pred, sample_weight))
        return found

    floats = [x for x in outputs if x.dtype.is_floating]
    pairs = zip(gradients_of(value, floats), floats, strict=True)
    gradients = [np.zeros(x.shape) if g is None else np.array(g, float) for g, x in pairs]
    weight = np.asarray(terms.weights(y, y_pred, sample_weight)) if terms.need_weights else None
    return Tried(float(found[0]), gradients, weight, stop - start)


def sums_up(terms: LossTerms, number: int, tried: list[Tried], slack: float = 0.0) -> bool:
    """Whether value and gradients equal those that training computes from the parts.

    Args:
        terms: the losses.
        number: which of them.
        tried: its results for the whole and for each part.
        slack: what the value's rounding error may add.
    """
    whole, *parts = tried
    scales = [
        terms.factors(part.rows, whole.rows, part.weight, whole.weight)[number]
        * (part.rows / whole.rows)
        for part in parts
    ]
    scaled = list(zip(scales, parts, strict=True))
    size = max(abs(part.value) for part in tried)
    total = sum(scale * part.value for scale, part in scaled)
    if not _near(np.array(whole.value), np.array(total), size + slack):
        return False
    for position, gradient in enumerate(whole.gradients):
        pieces = np.concatenate([scale * part.gradients[position] for scale, part in scaled])
        size = float(np.max(np.abs(gradient), initial=0.0))
        if not _near(gradient, pieces, size):
            return False
    return True


def _near(actual: np.ndarray, expected: np.ndarray, size: float) -> bool:
    limit = _TOLERANCE * (size if np.isfinite(size) else 1.0) + _NOTHING
    return bool(np.allclose(actual, expected, rtol=_TOLERANCE, atol=limit, equal_nan=True))
