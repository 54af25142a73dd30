"""What a stage takes of a micro-batch, some positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.flat_tensors import tensors_of
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.sequence.tile_head import tile_labels
from hyparflow.pipeline.token_layout import Positions, TokenLayout

__all__ = ["TokenInputs"]


@dataclass(frozen=True)
class TokenInputs:
    """The inputs of a stage for one micro-batch.

    Attributes:
        values: in the user's structure, of all positions; or a list of tensors of this shard's
            positions, from the stage before.
        rest: the share of the micro-batch, or its labels, of all positions.
        layout: chunks and shards.
        shard: the number of this shard.
        is_local: whether `values` are of this shard's positions only.
    """

    values: Any
    rest: Any
    layout: TokenLayout
    shard: int
    is_local: bool

    def __post_init__(self) -> None:
        if isinstance(self.rest, Labels):
            _require_length(self.rest, self.layout.length)

    def arguments(self, positions: Positions, before: int) -> list[Any]:
        """The tensors for a stage that was traced: of some positions.

        Args:
            positions: which.
            before: how many positions of this shard come before.
        """
        start, stop = positions
        first = before if self.is_local else start
        values = tf.nest.map_structure(
            lambda x: x if x is None else x[:, first : first + stop - start], self.values
        )
        rest = self.rest
        if isinstance(rest, Labels):
            rest = tile_labels(rest, start, stop, self.layout.length)
        return tensors_of((tf.constant(start), values, rest))


def _require_length(labels: Labels, length: int) -> None:
    shapes = [tuple(x.shape) for x in tf.nest.flatten(labels.y) if x is not None]
    if wrong := [shape for shape in shapes if len(shape) > 1 and shape[1] != length]:
        raise ValueError(
            "Labels must have as many positions as the sequence that is divided, which has "
            f"{length}. Received: labels of shape {wrong[0]}. Pass a label for each position, or "
            "leave `num_sequence_shards` and `num_sequence_chunks` out."
        )
