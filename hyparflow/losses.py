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

from typing import Any

import keras
from keras import ops

from hyparflow import keras_internals

__all__ = ["LossTerms", "ShareBox"]

_MEANS = ("sum_over_batch_size", "mean")


class ShareBox:
    """What the wrapped losses read while a step is traced.

    Attributes:
        share: n / B, the part of the global batch in this micro-batch.
        factors: one factor per loss term, see [Note: One scale].
    """

    def __init__(self) -> None:
        self.share: Any = None
        self.factors: Any = None


class _FactoredLoss:
    """One of the user's losses, times its factor."""

    def __init__(self, loss: Any, index: int, box: ShareBox) -> None:
        self._loss = loss
        self._index = index
        self._box = box

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        value = self._loss(y_true, y_pred, sample_weight)
        return value * ops.cast(self._box.factors[self._index], value.dtype)


class _WeightProbe:
    """Stands in for one loss and records the W of its batch instead of its value."""

    def __init__(self, loss: Any, weights: list[Any]) -> None:
        self._loss = loss
        self._weights = weights

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        self._weights.append(self._weight(y_true, y_pred, sample_weight))
        return ops.zeros(())

    def _weight(self, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        rows = ops.cast(ops.shape(y_pred)[0], "float64")
        reduction = getattr(self._loss, "reduction", None)
        masks = [
            keras_internals.get_mask(y_pred),
            keras_internals.loss_mask(self._loss, y_true, y_pred),
        ]
        masks = [ops.cast(mask, "bool") for mask in masks if mask is not None]
        mask = ops.logical_and(*masks) if len(masks) == 2 else masks[0] if masks else None
        if reduction in _MEANS and mask is not None:
            return ops.sum(ops.cast(mask, "float64"))
        if reduction == "mean_with_sample_weight":
            weight = keras_internals.masked_weight(sample_weight, mask, reduction)
            return rows if weight is None else ops.sum(ops.cast(weight, "float64"))
        if reduction == "sum":
            return ops.ones((), "float64")
        return rows


class _SharedMean:
    """A per-output loss metric that weights a micro-batch by its share.

    Plain `fit` adds each batch's value once, whatever the batch's size; so the micro-batches
    of one batch must add up to one.
    """

    def __init__(self, metric: Any, box: ShareBox) -> None:
        self._metric = metric
        self._box = box

    def update_state(self, value: Any, sample_weight: Any = None) -> None:
        self._metric.update_state(value, sample_weight=self._box.share)


class LossTerms:
    """The losses of a compiled model, made additive over micro-batches.

    Args:
        model: a compiled model whose compile-loss object is built.
        masked: whether a mask may reach the losses.
    """

    def __init__(self, model: Any, masked: bool) -> None:
        self.box = ShareBox()
        self._compiled = keras_internals.compile_loss(model)
        self._masked = masked
        self._entries = (
            [] if self._compiled is None else keras_internals.loss_entries(self._compiled)
        )
        losses = [
            _FactoredLoss(entry.loss, index, self.box)
            if self._needs_factor(entry.loss)
            else entry.loss
            for index, entry in enumerate(self._entries)
        ]
        self._additive = self._compiled and keras_internals.copy_with_losses(
            self._compiled, losses, lambda metric: _SharedMean(metric, self.box)
        )

    @property
    def count(self) -> int:
        """The number of loss terms."""
        return len(self._entries)

    @property
    def unreduced(self) -> list[str]:
        """Names of the losses that give one value per sample instead of one number."""
        return [
            entry.name
            for entry in self._entries
            if getattr(entry.loss, "reduction", "mean") in (None, "none")
        ]

    def _needs_factor(self, loss: Any) -> bool:
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        return reduction == "sum" or self._needs_weight(loss)

    def _needs_weight(self, loss: Any) -> bool:
        """Whether the factor of `loss` depends on the batch's weights, masks or labels."""
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        if reduction == "mean_with_sample_weight":
            return True
        own_class = isinstance(loss, keras.Loss) and not type(loss).__module__.startswith("keras.")
        own_mask = getattr(loss, "ignore_class", None) is not None or own_class
        return reduction in _MEANS and (self._masked or own_mask)

    @property
    def need_weights(self) -> bool:
        """Whether `weights` must be evaluated for each batch and micro-batch."""
        return any(self._needs_weight(entry.loss) for entry in self._entries)

    @property
    def need_factors(self) -> bool:
        """Whether any term has a factor other than 1."""
        return any(self._needs_factor(entry.loss) for entry in self._entries)

    def value(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """The summed losses of a micro-batch; to be traced with `box` filled."""
        if self._additive is None:
            return None
        return self._additive(y, y_pred, sample_weight)

    def weights(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """W of each term for one batch, as a float64 vector; `y_pred` gives shapes and masks."""
        found: list[Any] = []
        probes = [_WeightProbe(entry.loss, found) for entry in self._entries]
        keras_internals.copy_with_losses(self._compiled, probes)(y, y_pred, sample_weight)
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
        for index, entry in enumerate(self._entries):
            if getattr(entry.loss, "reduction", None) == "sum":
                factors.append(global_rows / rows)
            elif part is not None and self._needs_weight(entry.loss) and whole[index] > 0:
                factors.append((part[index] / rows) / (whole[index] / global_rows))
            else:
                factors.append(1.0)
        return factors
