"""How a model is cut: each rank finds the same cut by itself, without messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hyparflow.model import masks
from hyparflow.model.checks import check_can_cut
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.options import Options
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import Partitioning, divide

__all__ = ["ModelCut", "cut_model"]


@dataclass
class ModelCut:
    """How a model is cut, the same on every rank.

    Attributes:
        graph: the flat graph, or None where the whole model is the only stage.
        operations: the graph as pure data (None without a graph).
        partitioning: stages and edges.
        masked: (tensor, stage) where a stage takes a tensor with a mask: `masks.masked_inputs`.
        sums: (id of a layer, position) of the added losses that are sums over rows; filled in
            before a stage is traced.
    """

    graph: FlatGraph | None
    operations: OperationGraph | None
    partitioning: Partitioning
    masked: frozenset[tuple[int, int]]
    sums: set[tuple[int, int]] = field(default_factory=set)

    def masks_may_leave(self, model: Any) -> bool:
        """Whether an output of `model`, which is cut so, may have a mask."""
        if self.graph is None:
            return masks.may_make_masks([model])
        return masks.masks_leave(self.partitioning, self.masked)

    def describe(self) -> str:
        """A table of the stages."""
        if self.operations is None:
            return "one partition: the whole model"
        rows = []
        for stage in range(self.partitioning.num_stages):
            numbers = self.partitioning.operations(stage)
            operations = self.operations.operations
            rows.append(
                f"stage {stage}: {len(numbers)} operations, "
                f"{operations[numbers[0]].name} to {operations[numbers[-1]].name}, "
                f"{len(self.partitioning.stage_inputs[stage])} tensors in"
            )
        return "\n".join(rows)


def _flat(model: Any) -> FlatGraph:
    check_can_cut(model)
    return FlatGraph(model, opened_graph(model))


def cut_model(model: Any, options: Options) -> ModelCut:
    """Cut `model` as `options` say. No messages.

    Raises:
        ValueError: if the model cannot be cut in this way.
    """
    if options.grid.placement.num_stages == 1:
        if options.lpp is not None:
            divide(_flat(model).operation_graph([]), 1, options.lpp)
        return ModelCut(None, None, Partitioning((0, 1), (), ((0,),), ((0,),)), frozenset())
    graph = _flat(model)
    operations = graph.operation_graph(model.trainable_variables)
    partitioning = divide(
        operations, options.grid.placement.num_stages, options.lpp, options.balanced_for
    )
    return ModelCut(graph, operations, partitioning, masks.masked_inputs(graph, partitioning))
