"""Where a model that decodes is cut into partitions."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import GraphCall, Standardize
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.partition import Partitioning, divide

__all__ = ["cut_for_decoding", "is_made_anywhere"]


def cut_for_decoding(graph: FlatGraph, num_partitions: int) -> Partitioning:
    """Stages that read equally many weights, for that is what a token of few rows costs.

    Raises:
        ValueError: if the model cannot be cut so.
    """
    found = graph.operation_graph([])
    operations = [
        dataclasses.replace(operation, cost=_bytes_read(call))
        for operation, call in zip(found.operations, graph.calls, strict=True)
    ]
    return divide(dataclasses.replace(found, operations=tuple(operations)), num_partitions)


def is_made_anywhere(graph: FlatGraph, tensor: int) -> bool:
    """Whether each rank makes a tensor of the model's inputs itself, so that it need not cross."""
    if tensor in graph.inputs:
        return True
    name = graph.maker(tensor)
    return any(
        call.name == name and isinstance(call.operation, Standardize) for call in graph.calls
    )


def _bytes_read(call: GraphCall) -> float:
    """A byte more than that, for a call without weights takes time, too."""
    read = [layer for layer in call.layers if not _is_lookup(call, layer)]
    return 1.0 + sum(bytes_of(variable) for layer in read for variable in layer.variables)


def _is_lookup(call: GraphCall, layer: Any) -> bool:
    """Whether an embedding reads a few of its rows, and does not make logits of all."""
    if not isinstance(layer, keras.layers.Embedding):
        return False
    return bool(call.output_specs[0].shape[-1] != layer.input_dim)
