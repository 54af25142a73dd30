"""Losses and metrics of `compile`, made and checked to add up over micro-batches and replicas.

A metric's state after a batch must be the sum of what its micro-batches add to it. Keras's own
metrics keep sums, counts and confusion matrices. A function that gives one number for a batch is
weighted by the micro-batch's share of it, which makes a mean over rows exact. A loss must not look
from one row of the batch at another. What does not add up is found by trying it, and refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from hyparflow import keras_internals
from hyparflow.losses import LossTerms

__all__ = ["AdditiveMetrics", "require_additive", "require_weights", "weighted_by", "weighting"]

_ROWS = 10  # of the batch on which metrics are tried
_TOLERANCE = 1e-4  # relative, for states in float32


class AdditiveMetrics:
    """The metrics of a compiled model, updated one micro-batch at a time.

    Args:
        model: the compiled model, its metrics built.
    """

    def __init__(self, model: Any) -> None:
        self._compiled = keras_internals.compile_metrics(model)
        self.metrics = [] if self._compiled is None else list(self._compiled.metrics)
        self._of_functions = [m for m in self.metrics if keras_internals.metric_function(m)]

    def update(self, y: Any, y_pred: Any, sample_weight: Any, share: Any) -> None:
        """Update all with a micro-batch that is the part `share` of a global batch."""
        if self._compiled is None:
            return
        with weighting(self._of_functions, share):
            self._compiled.update_state(y, y_pred, sample_weight)


@contextlib.contextmanager
def weighting(metrics: Iterable[Any], share: Any) -> Iterator[None]:
    """While open, the means among `metrics` are `weighted_by` this share."""
    with contextlib.ExitStack() as stack:
        for metric in metrics:
            if isinstance(metric, keras.metrics.Mean):
                stack.enter_context(weighted_by(metric, share))
        yield


@contextlib.contextmanager
def weighted_by(metric: Any, share: Any) -> Iterator[None]:
    """While open, `metric`, a mean, counts a single number by `share` instead of by 1."""
    function = keras_internals.metric_function(metric)
    original = metric.update_state

    def update(*args: Any, **kwargs: Any) -> None:
        values, weights = _single_number(function, args, kwargs)
        if values is None or weights is not None or len(values.shape):
            return original(*args, **kwargs)
        return keras.metrics.Mean.update_state(metric, values, sample_weight=share)

    vars(metric)["update_state"] = update
    try:
        yield
    finally:
        del vars(metric)["update_state"]


def _single_number(
    function: Callable[[Any, Any], Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """The values that a mean is updated with, and their weights."""
    given = dict(zip(("y_true", "y_pred", "sample_weight"), args, strict=False)) | kwargs
    if function is None:  # a plain mean, updated with values
        given = dict(zip(("values", "sample_weight"), args, strict=False)) | kwargs
        values = given.get("values")
    else:
        values = function(given["y_true"], given["y_pred"])
    if values is not None:
        values = keras.ops.convert_to_tensor(values)
    return values, given.get("sample_weight")


def require_additive(model: Any, terms: LossTerms, symbolic: Any) -> None:
    """Try losses and metrics on a small batch, whole and in two parts.

    Those that cannot take these data (small random numbers) are let pass.

    Args:
        model: the compiled model, its metrics built.
        terms: its losses.
        symbolic: symbolic (y, y_pred, sample weights), or None where nothing is known.

    Raises:
        ValueError: naming the losses or metrics that do not add up.
    """
    if symbolic is None:
        return
    if terms.unreduced:
        raise ValueError(
            "A loss must be reduced to a number: without, its gradient is a sum over the rows of a "
            "batch, but its value a mean. Received: reduction='none' for the losses "
            f"{terms.unreduced}. Use reduction='sum_over_batch_size' or 'sum', or train with one "
            "replica and num_microbatches=1 (strategy='model')."
        )
    batch = _example(symbolic)
    parts = [_rows(batch, 0, _ROWS // 2), _rows(batch, _ROWS // 2, _ROWS)]
    losses = _found(lambda: _coupling_losses(terms, batch, parts))
    metrics = _found(lambda: _odd_metrics(model, batch, parts))
    rules = {
        f"the value of a loss for a row must not depend on other rows (losses {losses})": losses,
        f"a metric must keep sums and counts of rows (metrics {metrics})": metrics,
    }
    broken = [rule for rule, names in rules.items() if names]
    if broken:
        raise ValueError(
            "Losses and metrics must add up over the parts of a batch. "
            f"Received: {' and '.join(broken)}. Change them so, or train with one replica and "
            "num_microbatches=1 (strategy='model'), where a batch has one part."
        )


def require_weights(terms: LossTerms, symbolic: Any) -> None:
    """Check that sample weights fit the losses, by trying both on a few rows.

    Args:
        terms: the losses.
        symbolic: symbolic (y, y_pred, sample weights).

    Raises:
        ValueError: if the losses can be computed without the weights, but not with them.
    """
    y, y_pred, weights = _example(symbolic)
    try:
        terms.tried(y, y_pred, None)
    except Exception:  # not with these data; training will tell
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
    """The names that `find` returns; none where the data are not for what it tries."""
    try:
        with np.errstate(all="ignore"):
            return find()
    except Exception:  # training then fails as in plain Keras, if it does
        return []


def _coupling_losses(terms: LossTerms, batch: Any, parts: list[Any]) -> list[str]:
    """Losses of which the value of a row, or a batch's mean, changes when the batch is parted."""
    whole, first, second = (
        {name: np.array(value, float) for name, value in terms.values(*rows[:2]).items()}
        for rows in (batch, *parts)
    )
    odd = []
    for name, value in whole.items():
        joined = [first[name], second[name]]
        one_number = value.ndim == 0
        expected = np.mean(joined, 0) if one_number else np.concatenate(joined)
        if not _same([value], [expected]):
            odd.append(name)
        elif name in terms.one_number and one_number:
            terms.one_number.remove(name)  # a mean over rows is exact
    return odd


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
        [keras.ops.convert_to_numpy(v).astype(float) for v in metric.variables]
        for metric in metrics.metrics
    ]


def _sum(first: State, second: State, start: State) -> State:
    return [a + b - c for a, b, c in zip(first, second, start, strict=True)]


def _same(actual: State, expected: State) -> bool:
    return all(
        np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for a, b in zip(actual, expected, strict=True)
    )


def _example(symbolic: Any) -> Any:
    """Labels 0 and 1, predictions that are probabilities, weights between 0 and 1."""
    random = np.random.default_rng(0)
    labels, outputs, weights = symbolic

    def draw(make: Callable[[tuple[int, ...]], np.ndarray]) -> Callable[[Any], Any]:
        def one(spec: Any) -> Any:
            if spec is None:
                return None
            shape = (_ROWS, *(3 if size is None else size for size in spec.shape[1:]))
            return keras.ops.convert_to_tensor(make(shape), dtype=spec.dtype)

        return one

    def zeros_and_ones(shape: tuple[int, ...]) -> np.ndarray:
        limits = np.linspace(0.2, 0.9, _ROWS).reshape(-1, *[1] * (len(shape) - 1))
        return (random.random(shape) < limits).astype(int)  # the later rows have more ones

    def probabilities(shape: tuple[int, ...]) -> np.ndarray:
        values = random.uniform(0.05, 0.95, shape)
        several = len(shape) > 1 and shape[-1] > 1
        return values / values.sum(-1, keepdims=True) if several else values

    return (
        keras.tree.map_structure(draw(zeros_and_ones), labels),
        keras.tree.map_structure(draw(probabilities), outputs),
        keras.tree.map_structure(draw(lambda shape: random.uniform(0, 1, shape)), weights),
    )


def _rows(batch: Any, start: int, stop: int) -> Any:
    return keras.tree.map_structure(lambda x: None if x is None else x[start:stop], batch)
