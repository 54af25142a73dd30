"""Tries a user's own losses and metrics on more batches: do they add up with these, too?

A batch counts only if the whole and each part give finite numbers, so that a label which a loss
does not take, and a prediction that is too large for it, are no reason to refuse it. Keras's own
losses and metrics are known, and not tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from hyparflow.engine.batch import slice_rows
from hyparflow.engine.compiled.gradients_of import gradients_of
from hyparflow.engine.loss.additive_metrics import AdditiveMetrics
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.trials.example import ROWS, Arrays, invented, label_arrays
from hyparflow.engine.trials.losses import LossFindings, Tried, kept_variables, sums_up
from hyparflow.engine.trials.seen import Look
from hyparflow.engine.trials.traced import TracedTrial
from hyparflow.engine.trials.variants import FIRST_PART, variants
from hyparflow.model.keras_internals.compiled import metric_function

__all__ = ["is_own", "vary_losses", "vary_metrics"]

_WHOLE = (0, ROWS)
_PARTS = ((0, FIRST_PART), (FIRST_PART, ROWS))
_TOLERANCE = 1e-4  # relative, in float32
_ROUNDING = 1e-2  # of the size of what is added up, times the tolerance


def vary_losses(terms: LossTerms, symbolic: Any, seen: Look, findings: LossFindings) -> None:
    """Add to `findings` the losses that do not add up with some batch.

    Args:
        terms: the losses, tried once.
        symbolic: symbolic (y, y_pred, sample weights).
        seen: gives the user's first labels, if they are known.
        findings: what is known; a loss that is in it is not tried again.
    """
    known = {*findings.coupled, *findings.changing}
    for number, (name, loss) in enumerate(zip(terms.names, terms.losses, strict=True)):
        if name in known or not is_own(loss, getattr(loss, "fn", None)):
            continue
        with kept_variables(loss) as changed:
            adds_up = _loss_adds_up(terms, number, symbolic, seen)
        if changed:
            findings.changing.append(name)
        elif not adds_up:
            findings.coupled.append(name)


def vary_metrics(model: Any, symbolic: Any, seen: Look, known: list[str]) -> list[str]:
    """The names of metrics, besides those `known`, that do not add up with some batch."""
    metrics = AdditiveMetrics(model)
    tried = [
        metric
        for metric in metrics.metrics
        if metric.name not in known and is_own(metric, metric_function(metric))
    ]
    try:
        return [m.name for m in tried if not _metric_adds_up(metrics, m, symbolic, seen)]
    finally:
        if tried:
            model.reset_metrics()


def is_own(value: Any, function: Any) -> bool:
    """Whether a loss or a metric is the user's own: its class, or the function that it calls."""
    return any(
        not getattr(part, "__module__", "").startswith("keras.")
        for part in (type(value), function)
        if part is not None
    )


def _results(
    trial: TracedTrial, symbolic: Any, seen: Look
) -> Iterator[tuple[Arrays, list[list[np.ndarray]]]]:
    """Each batch where all is finite, and the results for the whole and for the parts."""
    labels = seen()
    example, own = invented(symbolic), label_arrays(symbolic, labels)
    for batch in variants(example, own, labels, trial.constants):
        try:
            with np.errstate(all="ignore"):
                whole = trial(batch)
                if trial.is_finite(whole):
                    parts = [trial(slice_rows(batch, *ends), _share(*ends)) for ends in _PARTS]
                    if all(map(trial.is_finite, parts)):
                        yield batch, [whole, *parts]
        except Exception:  # if training fails with such data, it fails as in plain Keras
            continue


def _share(start: int, stop: int) -> float:
    return (stop - start) / ROWS


def _loss_adds_up(terms: LossTerms, number: int, symbolic: Any, seen: Look) -> bool:
    """Whether a loss adds up with all batches that count: as what it is, a mean or a sum."""
    trial = TracedTrial(lambda batch, share: _of_loss(terms, number, batch), invented(symbolic), 1)
    was_sum, unknown = terms.is_sum(number), terms.names[number] in terms.one_number
    kinds = [False, True] if unknown else [was_sum]
    try:
        for batch, results in _results(trial, symbolic, seen):
            kinds = [kind for kind in kinds if _sums_as(terms, number, kind, results)]
            if not kinds:  # unless it draws random numbers, so that nothing can be compared
                return not np.array_equal(trial(batch)[0], results[0][0])
        return True
    finally:
        terms.note(number, is_known=not unknown, is_sum=was_sum)


def _of_loss(terms: LossTerms, number: int, batch: Any) -> list[Any]:
    """Value and W, and for each output of floats its gradient and itself."""
    y, y_pred, sample_weight = batch
    floats = [x for x in keras.tree.flatten(y_pred) if x is not None and x.dtype.is_floating]
    values: list[Any] = []

    def value() -> list[Any]:
        values.append(terms.alone(number, y, y_pred, sample_weight))
        return values

    pairs = list(zip(gradients_of(value, floats), floats, strict=True))
    weights = [terms.weights(y, y_pred, sample_weight)] if terms.need_weights else [values[0]]
    gradients = [
        keras.ops.zeros_like(x) if g is None else keras.ops.convert_to_tensor(g) for g, x in pairs
    ]
    return [*values, *weights, *gradients, *floats]


def _sums_as(terms: LossTerms, number: int, is_sum: bool, results: list[list[np.ndarray]]) -> bool:
    terms.note(number, is_known=True, is_sum=is_sum)
    count = (len(results[0]) - 2) // 2
    tried, scale = [], 0.0
    are_finite = all(np.all(np.isfinite(x)) for of in results for x in of[2 : 2 + count])
    for (value, weight, *arrays), (start, stop) in zip(results, (_WHOLE, *_PARTS), strict=True):
        gradients = [np.asarray(x, float) for x in arrays[:count]] if are_finite else []
        pairs = zip(gradients, arrays[count:], strict=False)
        scale += sum(float(np.sum(np.abs(g * x))) for g, x in pairs)
        needed = weight if terms.need_weights else None
        tried.append(Tried(float(value), gradients, needed, stop - start))
    return sums_up(terms, number, tried, _ROUNDING * scale)


def _metric_adds_up(metrics: AdditiveMetrics, metric: Any, symbolic: Any, seen: Look) -> bool:
    """Whether what parts of a batch add to a metric's state is what the whole adds."""

    def function(batch: Any, share: Any) -> list[Any]:
        metric.reset_state()
        metrics.update_one(metric, batch, share)
        return [v.value + 0 for v in metric.variables]

    metric.reset_state()
    start = [np.asarray(v, float) for v in metric.variables]
    trial = TracedTrial(function, invented(symbolic))
    for batch, (whole, first, second) in _results(trial, symbolic, seen):
        states = zip(whole, first, second, start, strict=True)
        if not all(_near(a, b + c - d) for a, b, c, d in states):
            pairs = zip(trial(batch), whole, strict=True)
            return not all(np.array_equal(a, b) for a, b in pairs)
    return True


def _near(actual: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(actual, expected, rtol=_TOLERANCE, atol=_TOLERANCE))
