"""One stage on this rank, with the numbers of its tensors and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.engine.stages.stage import Stage
from hyparflow.pipeline.partition import Partitioning

__all__ = ["LocalStage"]


class LocalStage:
    """One stage on this rank, with its place in the whole model.

    `Stage` computes, and knows its own inputs, outputs and weights only; this class adds what the
    engine needs: the numbers of its tensors in the model, and of its weights on the rank.

    Args:
        number: the number of the stage.
        stage: its compiled calls.
        partitioning: the table of stages and edges.
        masked: output tensors whose masks are appended to the list of outputs.
        weights: indices of this stage's trained weights in the rank's list.
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
        """The parts of a message: [tensor], or [tensor, mask] if `with_mask`.

        Args:
            outputs: what the stage returned: its output tensors, then their masks.
            tensor: the number of the output tensor.
            with_mask: whether the mask goes with it.
        """
        parts = [outputs[self.outputs.index(tensor)]]
        if with_mask:
            parts.append(outputs[len(self.outputs) + self.masked.index(tensor)])
        return parts
