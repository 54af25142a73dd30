"""Tries losses and metrics on a few rows, whole and in parts: do they add up?

The losses are tried in `hyparflow.engine.trials.losses`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from hyparflow.engine.batch import slice_rows
from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.loss.additive_metrics import AdditiveMetrics
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.trials.example import ROWS, invented
from hyparflow.engine.trials.losses import try_losses
from hyparflow.engine.trials.seen import Look
from hyparflow.engine.trials.varied import vary_losses, vary_metrics

__all__ = ["require_additive", "require_weights"]

_TOLERANCE = 1e-4  # relative, for states in float32


def require_additive(
    model: Any,
    terms: LossTerms,
    symbolic: Any,
    seen: Look = lambda: None,
    join: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> None:
    """Try losses and metrics on small batches, whole and in two parts.

    Losses and metrics that cannot take these data (small random numbers) are accepted untried.
    Those that are the user's own are tried on more batches: see `varied`.

    Args:
        model: the compiled model, its metrics built.
        terms: its losses.
        symbolic: symbolic (y, y_pred, sample weights), or None where nothing is known.
        seen: gives the user's first labels, as far as this rank has them; None if it has none.
            Called for losses and metrics of the user's own only.
        join: from what this rank found to what all ranks found.

    Raises:
        ValueError: the same on all ranks, naming the losses or metrics that do not add up.
    """
    if symbolic is None:
        return
    if terms.unreduced:
        raise ValueError(
            "A loss must be reduced to a number: without, its gradient is a sum over the rows of a "
            "batch, but its value a mean. Received: reduction='none', or a `__call__` that returns "
            f"no single number, of the losses {terms.unreduced}. Use "
            "reduction='sum_over_batch_size' or 'sum', return the mean, or train with one replica "
            "and num_microbatches=1 (strategy='model')."
        )
    found = join(_find(model, terms, symbolic, seen))
    coupled, changing, metrics = map(_joined, zip(*found, strict=True))
    weighted = " and their sample weights" if symbolic[2] is not None else ""
    rules = {
        "the value of a loss for a row must not depend on other rows"
        f"{weighted} (losses {coupled})": coupled,
        f"a loss must not change variables (losses {changing})": changing,
        f"a metric must keep sums and counts of rows (metrics {metrics})": metrics,
    }
    broken = [rule for rule, names in rules.items() if names]
    if broken:
        raise ValueError(
            "Losses and metrics must add up over the parts of a batch. "
            f"Received: {' and '.join(broken)}. Change them so (a loss: one value per row, or a "
            "mean or a sum over rows; with sample weights: one value per row), or train with one "
            "replica and num_microbatches=1 (strategy='model'), where a batch has one part."
        )


def _joined(names: Iterable[list[str]]) -> list[str]:
    """The names in all of the lists, each once."""
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))


def _find(
    model: Any, terms: LossTerms, symbolic: Any, seen: Look
) -> tuple[list[str], list[str], list[str]]:
    """The names of losses that join rows, of losses that change variables, and of metrics."""
    batch = as_tensors(invented(symbolic))
    parts = [slice_rows(batch, 0, ROWS // 2), slice_rows(batch, ROWS // 2, ROWS)]
    losses = try_losses(terms, batch)
    seen = functools.cache(seen)
    metrics = _found(lambda: _odd_metrics(model, batch, parts))
    vary_losses(terms, symbolic, seen, losses)
    metrics += _found(lambda: vary_metrics(model, symbolic, seen, metrics))
    return losses.coupled, losses.changing, metrics


def require_weights(terms: LossTerms, symbolic: Any) -> None:
    """Check that sample weights fit the losses, by trying both on a few rows.

    Args:
        terms: the losses.
        symbolic: symbolic (y, y_pred, sample weights).

    Raises:
        ValueError: if the losses can be computed without the weights, but not with them.
    """
    y, y_pred, weights = as_tensors(invented(symbolic))
    try:
        terms.tried(y, y_pred, None)
    except Exception:  # not with these data; training will show the error
        return
    try:
        terms.tried(y, y_pred, weights)
    except Exception as error:
        shapes = keras.tree.map_structure(
            lambda x: None if x is None else (None, *x.shape[1:]), symbolic[2]
        )
        raise ValueError(
            "`sample_weight` must have one number for each row, or for each value of the loss. "
            f"Received: sample weights of shape {shapes} ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _found(find: Callable[[], list[str]]) -> list[str]:
    """The names that `find` returns; none if it cannot take these data."""
    try:
        with np.errstate(all="ignore"):
            return find()
    except Exception:  # if training fails, too, it fails as in plain Keras
        return []


def _odd_metrics(model: Any, batch: Any, parts: list[Any]) -> list[str]:
    """Metrics whose state after a batch is not the sum of what its parts add."""
    metrics = AdditiveMetrics(model)
    try:
        start = _state_after(metrics, [])
        whole = _state_after(metrics, [(batch, 1.0)])
        first, second = (_state_after(metrics, [(part, 0.5)]) for part in parts)
        both = _state_after(metrics, [(part, 0.5) for part in parts])
    finally:
        model.reset_metrics()
    return [
        metric.name
        for index, metric in enumerate(metrics.metrics)
        if not _same(whole[index], both[index])
        or not _same(whole[index], _sum(first[index], second[index], start[index]))
    ]


State = list[np.ndarray]


def _state_after(metrics: AdditiveMetrics, batches: list[tuple[Any, float]]) -> list[State]:
    """The state of each metric after these batches, each with its share."""
    for metric in metrics.metrics:
        metric.reset_state()
    for (y, y_pred, sample_weight), share in batches:
        metrics.update(y, y_pred, sample_weight, keras.ops.convert_to_tensor(share))
    return [
        [keras.ops.convert_to_numpy(v.value).astype(float) for v in metric.variables]
        for metric in metrics.metrics
    ]


def _sum(first: State, second: State, start: State) -> State:
    return [a + b - c for a, b, c in zip(first, second, start, strict=True)]


def _same(actual: State, expected: State) -> bool:
    return all(
        np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for a, b in zip(actual, expected, strict=True)
    )
