"""Loss and metrics of some positions of a micro-batch.

What [Note: One scale.] in `hyparflow.engine.loss.terms` says of rows holds for positions: a tile of
t of S positions of n of B rows has the share ``n t / (B S)`` of a batch.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hyparflow.engine.loss.additive_metrics import means_of_parts
from hyparflow.engine.loss.head import Labels, LossHead
from hyparflow.model.keras_internals.layers import get_mask

__all__ = ["TileHead", "counted_positions", "tile_labels"]


def tile_labels(labels: Labels, start: int, stop: int, length: int) -> Labels:
    """The labels of some positions of a micro-batch.

    Args:
        labels: those of all positions; their `factors` are W of the whole batch.
        start, stop: the positions.
        length: of the whole sequence.
    """
    part = (stop - start) / length

    def positions(x: Any) -> Any:
        has_positions = x is not None and len(x.shape) > 1 and x.shape[1] == length
        return x[:, start:stop] if has_positions else x

    return labels._replace(
        y=tf.nest.map_structure(positions, labels.y),
        sample_weight=tf.nest.map_structure(positions, labels.sample_weight),
        share=labels.share * part,
        seed=labels.seed * part,
        rows=labels.rows * part,
    )


class TileHead:
    """A `LossHead` for tiles.

    Args:
        head: the model's.
    """

    def __init__(self, head: LossHead) -> None:
        self._head = head

    def loss(self, outputs: list[Any], labels: Labels) -> Any:
        """The tile's loss as a scalar tensor; to be traced. Metrics are updated.

        Args:
            outputs: the model's flat outputs.
            labels: from `tile_labels`.
        """
        factors = self._head.factors(outputs, labels)
        rows = tf.cast(tf.shape(outputs[0])[0], tf.float64)
        with means_of_parts(labels.rows / rows):
            return self._head.loss(outputs, None, labels._replace(factors=factors))


def counted_positions(outputs: list[Any], labels: Labels) -> Any:
    """Which positions of each row count in the loss: not masked, and of a weight that is not zero.

    Args:
        outputs: the model's flat outputs; the first tells.
        labels: of the same positions.
    """
    counted = tf.ones(tf.shape(outputs[0])[:2], tf.bool)
    mask = get_mask(outputs[0])
    if mask is not None:
        counted &= tf.cast(mask, tf.bool)
    weights = [x for x in tf.nest.flatten(labels.sample_weight) if x is not None]
    if weights:
        weight = weights[0]
        shape = [*tf.unstack(tf.shape(weight)[:2]), -1] if weight.shape.rank > 1 else [-1, 1, 1]
        counted &= tf.reduce_any(tf.reshape(weight, shape) != 0, -1)
    return counted
