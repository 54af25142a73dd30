"""Tries losses and metrics on a few positions, whole and in parts: do they add up?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.loss.additive_metrics import AdditiveMetrics, means_of_parts
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.trials.example import ROWS, Arrays, invented, label_arrays, probabilities
from hyparflow.engine.trials.seen import Look
from hyparflow.engine.trials.traced import TracedTrial
from hyparflow.engine.trials.variants import variants
from hyparflow.engine.trials.varied import is_own
from hyparflow.model.keras_internals.compiled import metric_function

__all__ = ["require_additive_positions"]

_TOLERANCE = 1e-4  # relative, in float32
_FEW = 4  # positions: so many are cut in halves


def require_additive_positions(
    model: Any,
    terms: LossTerms,
    symbolic: Any,
    seen: Look = lambda: None,
    join: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> None:
    """Check that losses and metrics of parts of a sequence add up to those of the whole.

    Losses and metrics that cannot take small random numbers are accepted untried. Those that are
    the user's own are tried with labels that may have a meaning of their own, too.

    Args:
        model: the compiled model, its metrics built.
        terms: its losses.
        symbolic: symbolic (y, y_pred, sample weights), or None where nothing is known.
        seen: gives the user's first labels, as far as this rank has them; None if it has none.
        join: from what this rank found to what all ranks found.

    Raises:
        ValueError: the same on all ranks, naming what does not add up.
    """
    if symbolic is None:
        return
    metrics, coupled, odd = AdditiveMetrics(model), False, dict[str, None]()
    for batch in map(as_tensors, _batches(terms, metrics, symbolic, seen)):
        length = keras.tree.flatten(batch[1])[0].shape[1]
        cut = (length + 1) // 3 if length > _FEW else (length + 1) // 2
        parts = [
            (_part(batch, start, stop), (stop - start) / length)
            for start, stop in ((0, cut), (cut, length))
        ]
        coupled |= not _losses_add_up(terms, batch, parts)
        odd.update(dict.fromkeys(_odd_metrics(model, metrics, batch, parts)))
    everyone = join((coupled, list(odd)))
    broken = []
    if any(one for one, _ in everyone):
        broken.append(
            f"the value of a loss for a position must not depend on others (losses {terms.names})"
        )
    if names := list(dict.fromkeys(name for _, several in everyone for name in several)):
        broken.append(f"a metric must keep sums and counts of positions (metrics {names})")
    if broken:
        raise ValueError(
            "Losses and metrics must add up over the positions of a sequence that is divided. "
            f"Received: {' and '.join(broken)}. Change them so (a loss: one value per position), "
            "or leave `num_sequence_shards` and `num_sequence_chunks` out."
        )


def _batches(
    terms: LossTerms, metrics: AdditiveMetrics, symbolic: Any, seen: Look
) -> Iterator[Arrays]:
    """The batches to try: the invented one, and more if anything is the user's own."""
    example = invented(symbolic)
    yield _varied(*example)
    losses = [n for n, x in enumerate(terms.losses) if is_own(x, getattr(x, "fn", None))]
    own = [m for m in metrics.metrics if is_own(m, metric_function(m))]
    if not losses and not own:
        return

    def computed(number: int, batch: Any, share: Any) -> list[Any]:
        return [terms.alone(number, *batch)]

    def updated(metric: Any, batch: Any, share: Any) -> list[Any]:
        metrics.update_one(metric, batch, share)
        return []

    functions = [functools.partial(computed, number) for number in losses]
    functions += [functools.partial(updated, metric) for metric in own]
    constants = dict.fromkeys(c for f in functions for c in TracedTrial(f, example, 1).constants)
    labels = seen()
    known = label_arrays(symbolic, labels)
    turned = None if known is None else _turned(known)
    for batch in variants(_turned(example), turned, labels, list(constants)):
        yield _turned(batch)


def _turned(batch: Arrays) -> Arrays:
    """A batch of `ROWS` rows and positions, the two exchanged; cut or repeated to so many."""

    def turn(x: np.ndarray | None) -> np.ndarray | None:
        if x is None or x.ndim < 2:
            return x
        return np.take(x, np.arange(ROWS) % x.shape[1], 1).swapaxes(0, 1)

    return keras.tree.map_structure(turn, batch)


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

        total = value(batch, 1.0)
    except Exception:  # if training fails, too, it fails as in plain Keras
        return True
    try:
        added = sum(value(*part) for part in parts)
    except Exception:  # it takes the whole, but no part
        return False
    if not np.isfinite(total) or not np.isfinite(added):  # labels that the loss does not take
        return True
    return bool(np.isclose(total, added, rtol=_TOLERANCE, atol=1e-7))


def _odd_metrics(model: Any, metrics: AdditiveMetrics, batch: Any, parts: Parts) -> list[str]:
    """Metrics whose state after a batch differs from that after its parts."""
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
