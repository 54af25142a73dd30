"""Tries losses and metrics on a few positions, whole and in parts: do they add up?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.loss.additive_metrics import AdditiveMetrics, means_of_parts
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.trials.example import invented, probabilities

__all__ = ["require_additive_positions"]

_TOLERANCE = 1e-4  # relative, in float32


def require_additive_positions(model: Any, terms: LossTerms, symbolic: Any) -> None:
    """Check that losses and metrics of parts of a sequence add up to those of the whole.

    Losses and metrics that cannot take small random numbers are accepted untried.

    Args:
        model: the compiled model, its metrics built.
        terms: its losses.
        symbolic: symbolic (y, y_pred, sample weights), or None where nothing is known.

    Raises:
        ValueError: naming what does not add up.
    """
    if symbolic is None:
        return
    batch = as_tensors(_varied(*invented(symbolic)))
    length = keras.tree.flatten(batch[1])[0].shape[1]
    cut = (length + 1) // 2
    parts = [
        (_part(batch, start, stop), (stop - start) / length)
        for start, stop in ((0, cut), (cut, length))
    ]
    broken = []
    if not _losses_add_up(terms, batch, parts):
        broken.append(
            f"the value of a loss for a position must not depend on others (losses {terms.names})"
        )
    if odd := _odd_metrics(model, batch, parts):
        broken.append(f"a metric must keep sums and counts of positions (metrics {odd})")
    if broken:
        raise ValueError(
            "Losses and metrics must add up over the positions of a sequence that is divided. "
            f"Received: {' and '.join(broken)}. Change them so (a loss: one value per position), "
            "or leave `num_sequence_shards` and `num_sequence_chunks` out."
        )


def _varied(y: Any, y_pred: Any, weights: Any) -> Any:
    """The batch with predictions that differ from position to position more than by chance."""

    def steeper(x: np.ndarray) -> np.ndarray:
        power = np.linspace(1, 3, x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))
        return probabilities(x**power).astype(x.dtype) if x.ndim > 1 else x

    return y, keras.tree.map_structure(steeper, y_pred), weights


Parts = Sequence[tuple[Any, float]]  # batches of some positions, and the share of each


def _part(batch: Any, start: int, stop: int) -> Any:
    length = keras.tree.flatten(batch[1])[0].shape[1]

    def cut(x: Any) -> Any:
        has_positions = x is not None and len(x.shape) > 1 and x.shape[1] == length
        return x[:, start:stop] if has_positions else x

    return keras.tree.map_structure(cut, batch)


def _losses_add_up(terms: LossTerms, batch: Any, parts: Parts) -> bool:
    if not terms.count:
        return True
    try:
        whole = terms.weights(*batch)

        def value(of: Any, share: float) -> float:
            y, y_pred, weights = of
            part = tf.constant(share, tf.float64)
            factors = terms.factors_of_part(y, y_pred, weights, part, whole)
            loss = terms.value(y, y_pred, weights, part, factors)
            return float(tf.cast(loss, tf.float64)) * share

        total, added = value(batch, 1.0), sum(value(*part) for part in parts)
    except Exception:  # if training fails, too, it fails as in plain Keras
        return True
    return bool(np.isclose(total, added, rtol=_TOLERANCE, atol=1e-7, equal_nan=True))


def _odd_metrics(model: Any, batch: Any, parts: Parts) -> list[str]:
    """Metrics whose state after a batch differs from that after its parts."""
    metrics = AdditiveMetrics(model)
    try:
        whole, both = _states(metrics, [(batch, 1.0)]), _states(metrics, parts)
    except Exception:
        return []
    finally:
        model.reset_metrics()
    return [
        metric.name
        for metric, a, b in zip(metrics.metrics, whole, both, strict=True)
        if not all(map(_alike, a, b))
    ]


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _states(metrics: AdditiveMetrics, batches: Parts) -> list[list[np.ndarray]]:
    for metric in metrics.metrics:
        metric.reset_state()
    for (y, y_pred, sample_weight), share in batches:
        with means_of_parts(share):
            metrics.update(y, y_pred, sample_weight, tf.constant(share, tf.float64))
    return [[np.asarray(v.value, float) for v in m.variables] for m in metrics.metrics]
