"""The metrics of `compile`, made to add up over micro-batches and replicas.

A metric's state after a batch must be the sum of what its micro-batches add to it. Keras's own
metrics keep sums, counts and confusion matrices. A function that gives one number for a batch is
weighted by the micro-batch's share n / B, which makes a mean over rows exact. Metrics that do not
add up are found by trials (`hyparflow.engine.trials.sums`), and refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from hyparflow.model.keras_internals.compiled import compile_metrics, metric_function
from hyparflow.model.keras_internals.patched import patched

__all__ = ["AdditiveMetrics", "means_of_parts", "weighted_by", "weighting"]


class AdditiveMetrics:
    """The metrics of a compiled model, updated one micro-batch at a time.

    Args:
        model: the compiled model, its metrics built.
    """

    def __init__(self, model: Any) -> None:
        self._compiled = compile_metrics(model)
        self.metrics = [] if self._compiled is None else list(self._compiled.metrics)
        self._of_functions = [m for m in self.metrics if metric_function(m)]

    def update(self, y: Any, y_pred: Any, sample_weight: Any, share: Any) -> None:
        """Update all metrics with a micro-batch; `share` is n / B, its part of the global batch."""
        if self._compiled is None:
            return
        with weighting(self._of_functions, share):
            self._compiled.update_state(y, y_pred, sample_weight)

    def update_one(self, metric: Any, batch: tuple[Any, Any, Any], share: Any) -> None:
        """As `update`, for one of the metrics and a batch of (y, y_pred, sample weights)."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(weighting([m for m in self._of_functions if m is metric], share))
            for other in self.metrics:
                if other is not metric:
                    stack.enter_context(patched(other, update_state=_nothing))
            self._compiled.update_state(*batch)  # type: ignore[union-attr]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Takes the place of the update of a metric."""


@contextlib.contextmanager
def weighting(metrics: Iterable[Any], share: Any) -> Iterator[None]:
    """While open, `weighted_by` holds for each mean among `metrics`."""
    with contextlib.ExitStack() as stack:
        for metric in metrics:
            if isinstance(metric, keras.metrics.Mean):
                stack.enter_context(weighted_by(metric, share))
        yield


@contextlib.contextmanager
def means_of_parts(part: Any) -> Iterator[None]:
    """While open, means over rows count them by the part of their positions that is there.

    Keras takes the mean over the positions of a row, then over rows: a part of the positions counts
    as that part of a row.

    Args:
        part: t / S, a scalar.
    """
    original = keras.metrics.Mean.update_state

    def update(self: Any, values: Any, sample_weight: Any = None) -> Any:
        values = keras.ops.convert_to_tensor(values)
        if len(values.shape):
            scale = keras.ops.cast(part, self.dtype)
            if sample_weight is None:
                sample_weight = keras.ops.full(keras.ops.shape(values)[:1], scale)
            else:
                sample_weight = keras.ops.cast(sample_weight, self.dtype) * scale
        return original(self, values, sample_weight)

    with patched(keras.metrics.Mean, update_state=update):
        yield


@contextlib.contextmanager
def weighted_by(metric: Any, share: Any) -> Iterator[None]:
    """While open, a single number counts in the mean `metric` with weight `share`, not 1."""
    function = metric_function(metric)
    original = metric.update_state

    def update(*args: Any, **kwargs: Any) -> None:
        values, weights = _single_number(function, args, kwargs)
        if values is None or weights is not None or len(values.shape):
            return original(*args, **kwargs)
        return keras.metrics.Mean.update_state(metric, values, sample_weight=share)

    with patched(metric, update_state=update):
        yield


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
