"""The loss of a micro-batch as a part of the global batch's loss.

[Note: One scale.] Plain Keras divides the sum of a batch's loss values by one number W: the number
of samples, or of unmasked values, or the sum of the sample weights, as the loss's reduction says.
A micro-batch of n of the B rows would divide by its own W_m. Here its loss is multiplied by
``(W_m / n) / (W / B)``, which makes it the sum of its values times ``B / (n W)``, and its gradient
by ``n / B`` at the very start of the backward. After that everything is a SUM: over
micro-batches, replicas and holders of shared weights. Nothing else is divided anywhere.

For the usual loss, a mean over samples, the factor is 1 and is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from hyparflow.model.keras_internals.compiled import (
    compile_loss,
    copy_with_losses,
    has_own_call,
    loss_entries,
    loss_values,
    masked_weight,
    replaced_loss,
)
from hyparflow.model.keras_internals.layers import get_mask, symbolic_output

__all__ = ["LossTerms"]

_MEANS = ("sum_over_batch_size", "mean")


class _FactoredLoss:
    """One of the user's losses, times its factor."""

    def __init__(self, loss: Any, factor: Any) -> None:
        self._loss = loss
        self._factor = factor

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        value = self._loss(y_true, y_pred, sample_weight)
        return value * ops.cast(self._factor, value.dtype)


class _Probe:
    """Takes the place of one loss, and records something about a batch in place of its value."""

    def __init__(self, loss: Any, ask: Callable[[Any, Any, Any, Any], Any]) -> None:
        self._loss = loss
        self._ask = ask

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        self._ask(self._loss, y_true, y_pred, sample_weight)
        return ops.zeros(())


def _unique_names(entries: list[Any]) -> list[str]:
    """The name of each loss in messages, with the name of its output if there are several."""
    names = [str(getattr(entry.loss, "name", type(entry.loss).__name__)) for entry in entries]
    if len(names) == 1:
        return names
    return [f"{name} of {entry.name}" for name, entry in zip(names, entries, strict=True)]


def _reduction(loss: Any) -> str | None:
    if has_own_call(loss):
        return "own"  # its own `__call__` may ignore the reduction
    return getattr(loss, "reduction", "sum_over_batch_size")


def _weight(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
    """W of one loss for a batch, see [Note: One scale]."""
    # Of the labels: predictions may be known by their masks alone. Only ratios of W matter.
    rows = ops.cast(ops.size(y_true), "float64")
    values = loss_values(loss, y_true, y_pred)
    masks = [get_mask(y_pred), get_mask(values)]
    masks = [ops.cast(mask, "bool") for mask in masks if mask is not None]
    mask = ops.logical_and(*masks) if len(masks) == 2 else masks[0] if masks else None
    if _reduction(loss) in _MEANS and mask is not None:
        # Keras turns the mask into weights of total / W each (some versions add an epsilon to W).
        weights = masked_weight(None, mask, "mean")
        total = ops.cast(ops.size(mask), "float64")
        return ops.divide_no_nan(total, ops.max(weights))
    if _reduction(loss) == "mean_with_sample_weight":
        weight = masked_weight(sample_weight, mask, "mean_with_sample_weight")
        return rows if weight is None else ops.sum(ops.cast(weight, "float64"))
    return rows


class _SharedMean:
    """A per-output loss metric that weights a micro-batch by its share.

    Plain `fit` adds each batch's value once, whatever the batch's size; so the micro-batches
    of one batch must add up to one.
    """

    def __init__(self, metric: Any, share: Any) -> None:
        self._metric = metric
        self._share = share

    def update_state(self, value: Any, sample_weight: Any = None) -> None:
        self._metric.update_state(value, sample_weight=self._share)


class LossTerms:
    """The losses of a compiled model, made additive over micro-batches.

    Args:
        model: a compiled model whose compile-loss object is built.
        masked: whether a mask may reach the losses from the model.
        symbolic: symbolic (y, y_pred, sample weights), to learn what the losses do with a batch;
            None if nothing is known of the labels.
    """

    def __init__(self, model: Any, masked: bool, symbolic: Any = None) -> None:
        self._compiled = compile_loss(model)
        if self._compiled is not None and not self._compiled.built:
            self._compiled = None  # the labels are unknown: only the model's own code has them
        entries = [] if self._compiled is None else loss_entries(self._compiled)
        self.names = _unique_names(entries)
        self.losses = [entry.loss for entry in entries]
        self.masked = masked
        self._masks = [False] * len(entries)  # which losses mask their own values
        self.unreduced: list[str] = []  # losses whose value is not a number
        self._one_number: set[int] = set()  # losses that give one number: a mean or a sum
        self._unknown: set[int] = set()  # losses of which it is not known whether mean or sum
        self._sums = {n for n, loss in enumerate(self.losses) if _reduction(loss) == "sum"}
        if symbolic is not None and entries:
            self._learn(symbolic)
        self._weighted = [
            _reduction(loss) == "mean_with_sample_weight"
            or (_reduction(loss) in _MEANS and (masked or masks))
            for loss, masks in zip(self.losses, self._masks, strict=True)
        ]

    def _additive(self, share: Any, factors: Any) -> Any:
        """The model's losses, wrapped for a micro-batch; `share` is n / B."""
        losses = [
            _FactoredLoss(loss, factors[index]) if self._has_factor(index) else loss
            for index, loss in enumerate(self.losses)
        ]
        return copy_with_losses(self._compiled, losses, lambda metric: _SharedMean(metric, share))

    def _has_factor(self, index: int) -> bool:
        return self._weighted[index] or index in self._sums or index in self._one_number

    def _learn(self, symbolic: Any) -> None:
        """Find the losses that mask values (`ignore_class`) or give one number for a batch."""

        def ask(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> None:
            index = next(i for i, other in enumerate(self.losses) if other is loss)
            own = has_own_call(loss)
            if own:
                values = ops.convert_to_tensor(loss(y_true, y_pred, sample_weight))
            else:
                values = loss_values(loss, y_true, y_pred)
            self._masks[index] = get_mask(values) is not None
            one_number = len(values.shape) == 0
            if _reduction(loss) in (None, "none") or (own and not one_number):
                self.unreduced.append(self.names[index])
            elif one_number:
                self._one_number.add(index)
                self._unknown.add(index)

        def trace(y: Any, y_pred: Any, sample_weight: Any) -> Any:
            return self._probe(ask, y, y_pred, sample_weight)

        symbolic_output(trace, *symbolic)

    def _probe(self, ask: Callable[..., Any], y: Any, y_pred: Any, sample_weight: Any) -> Any:
        probes = [_Probe(loss, ask) for loss in self.losses]
        return copy_with_losses(self._compiled, probes)(y, y_pred, sample_weight)

    @property
    def count(self) -> int:
        """The number of losses."""
        return len(self.losses)

    @contextlib.contextmanager
    def used_by(self, model: Any, share: Any, factors: Any) -> Iterator[None]:
        """While open, the model's own `compute_loss` finds these losses in place of its own."""
        if self._compiled is None:
            yield
            return
        with replaced_loss(model, self._additive(share, factors)):
            yield

    @property
    def one_number(self) -> list[str]:
        """Losses that give one number for a batch, and may be a mean or a sum over rows."""
        return [self.names[number] for number in sorted(self._unknown)]

    def is_one_number(self, number: int) -> bool:
        """Whether the loss of this number gives one number for a batch."""
        return number in self._one_number

    def is_sum(self, number: int) -> bool:
        """Whether the loss of this number is a sum over the rows, as far as it is known."""
        return number in self._sums

    def note(self, number: int, is_known: bool, is_sum: bool | None = None) -> None:
        """Note whether a loss that gives one number is known, and whether it is a sum or a mean."""
        (self._unknown.discard if is_known else self._unknown.add)(number)
        if is_sum is not None:
            (self._sums.add if is_sum else self._sums.discard)(number)

    def alone(self, number: int, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """The value of one of the losses for a batch."""
        found: list[Any] = []

        def ask(loss: Any, *batch: Any) -> None:
            if loss is self.losses[number]:
                found.append(loss(*batch))

        self._probe(ask, y, y_pred, sample_weight)
        return found[0]

    def tried(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """The summed losses of a whole batch in a trial."""
        share, factors = ops.ones((), "float64"), ops.ones((max(1, self.count),), "float64")
        return self.value(y, y_pred, sample_weight, share, factors)

    @property
    def need_weights(self) -> bool:
        """Whether `weights` must be evaluated for each batch and micro-batch."""
        return any(self._weighted)

    def value(self, y: Any, y_pred: Any, sample_weight: Any, share: Any, factors: Any) -> Any:
        """The summed losses of a micro-batch, or None without a loss; to be traced.

        Args:
            y, y_pred, sample_weight: in the user's structures.
            share: n / B, the part of the global batch in this micro-batch.
            factors: one factor per loss term, see [Note: One scale].
        """
        if self._compiled is None:
            return None
        return self._additive(share, factors)(y, y_pred, sample_weight)

    def weights(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """W of each term for one batch, as a float64 vector; `y_pred` gives shapes and masks."""
        found: list[Any] = []
        self._probe(lambda *batch: found.append(_weight(*batch)), y, y_pred, sample_weight)
        return ops.stack(found)

    def factors(
        self, rows: int, global_rows: int, part: Any = None, whole: Any = None
    ) -> list[float]:
        """The factor of each term, see [Note: One scale].

        Args:
            rows, global_rows: n and B.
            part, whole: W of the micro-batch and of the global batch (where `need_weights`).
        """
        factors = []
        for index in range(self.count):
            if index in self._sums:
                factors.append(global_rows / rows)
            elif part is not None and self._weighted[index] and whole[index] > 0:
                factors.append((part[index] / rows) / (whole[index] / global_rows))
            else:
                factors.append(1.0)
        return factors

    def factors_of_part(
        self, y: Any, y_pred: Any, sample_weight: Any, share: Any, whole: Any
    ) -> Any:
        """The factor of each term, as a vector; to be traced.

        Args:
            y, y_pred, sample_weight: of a part of the batch.
            share: the part of the global batch in it.
            whole: W of each term for the global batch (where `need_weights`).
        """
        part = self.weights(y, y_pred, sample_weight) if self.need_weights else None
        factors = []
        for index in range(self.count):
            factor = ops.ones((), "float64")
            if index in self._sums:
                factor = 1 / share
            elif part is not None and self._weighted[index]:
                factor = ops.divide_no_nan(part[index], whole[index] * share)
            factors.append(factor)
        return ops.stack(factors) if factors else ops.ones((1,), "float64")
