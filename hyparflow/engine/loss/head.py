"""The end of the last stage: loss and metrics of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from hyparflow.engine.loss.additive_metrics import AdditiveMetrics
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.model.keras_internals.compiled import loss_tracker

__all__ = ["LossHead", "Labels", "no_labels"]


class Labels(NamedTuple):
    """What the last stage needs of a micro-batch besides its inputs.

    Attributes:
        y, sample_weight: in the user's structure, or None.
        share: n / B, the part of the global batch in this micro-batch.
        seed: the share times the loss scale, by which the loss is multiplied for the backward.
        factors: one factor per loss term, see `hyparflow.engine.loss.terms`, [Note: One scale].
        rows: n.
    """

    y: Any
    sample_weight: Any
    share: Any
    seed: Any
    factors: Any
    rows: Any


def no_labels(microbatch: int) -> Labels:
    """Stands in for the labels on ranks that have none."""
    raise RuntimeError(f"This rank has no labels. Received: micro-batch {microbatch}")


class LossHead:
    """Turns the model's outputs into the loss and updates the metrics, with Keras's objects.

    Args:
        model: the compiled model.
        terms: its losses, additive over micro-batches.
        pack: flat outputs -> the structure that the model's call returns.
    """

    def __init__(
        self,
        model: Any,
        terms: LossTerms,
        pack: Callable[[list[Any]], Any],
    ) -> None:
        self._model = model
        self._terms = terms
        self._pack = pack
        self._metrics = AdditiveMetrics(model)

    def factors(self, outputs: list[Any], labels: Labels) -> Any:
        """The factors of the losses of a part whose labels have W of the whole batch; traced."""
        y_pred = self._pack(outputs)
        return self._terms.factors_of_part(
            labels.y, y_pred, labels.sample_weight, labels.share, labels.factors
        )

    def loss(self, outputs: list[Any], added: Any, labels: Labels, of_metrics: Any = None) -> Any:
        """The micro-batch's loss as a scalar tensor; to be traced.

        Args:
            outputs: the model's flat outputs.
            added: what the stage's layers added to the loss, or None.
            labels: labels, weights and shares.
            of_metrics: the weights for the metrics, if they are others.
        """
        y_pred = self._pack(outputs)
        loss = self._terms.value(
            labels.y, y_pred, labels.sample_weight, labels.share, labels.factors
        )
        parts = [part for part in (loss, added) if part is not None]
        loss = sum(parts) if parts else ops.zeros(())
        loss_tracker(self._model).update_state(loss, sample_weight=labels.rows)
        weights = labels.sample_weight if of_metrics is None else of_metrics
        self._metrics.update(labels.y, y_pred, weights, labels.share)
        return ops.sum(loss)
