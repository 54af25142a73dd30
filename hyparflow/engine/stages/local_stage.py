"""The stages that a rank computes: each knows its tensors and its weights among all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.engine.stages.stage import Stage
from hyparflow.pipeline.partition import Partitioning

__all__ = ["LocalStage"]


class LocalStage:
    """One stage of the rank, and the numbers of its input and output tensors.

    Args:
        number: the number of the stage.
        stage: its compiled calls.
        partitioning: the table of stages and edges.
        masked: output tensors whose masks follow the outputs.
        weights: positions of its trained weights among those of the rank.
        types: the types of its inputs, or None where they are not known before it runs.
    """

    def __init__(
        self,
        number: int,
        stage: Stage,
        partitioning: Partitioning,
        masked: tuple[int, ...],
        weights: Sequence[int],
        types: Sequence[Any] | None = None,
    ) -> None:
        self.number = number
        self.stage = stage
        self.inputs = partitioning.stage_inputs[number]
        self.outputs = partitioning.stage_outputs[number]
        self.masked = masked
        self.weights = list(weights)
        self.types = types
        self.is_first = number == 0
        self.is_last = number == partitioning.num_stages - 1
        self.gradient_inputs = partitioning.gradient_inputs(number)
        self.gradient_outputs = partitioning.gradient_outputs(number)

    def parts(self, outputs: list[Any], tensor: int, with_mask: bool) -> list[Any]:
        """An output tensor, and its mask where it goes with it."""
        parts = [outputs[self.outputs.index(tensor)]]
        if with_mask:
            parts.append(outputs[len(self.outputs) + self.masked.index(tensor)])
        return parts
