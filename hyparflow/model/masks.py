"""Which tensors carry a Keras mask where they cross a cut, or leave the model.

A mask is an attribute of a tensor, so it does not cross a cut by itself. Models without any
source of masks (nearly all image models) cost nothing here; for the others the whole graph is
traced once, which every rank does alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.layers import all_layers, get_mask, symbolic_output
from hyparflow.pipeline.partition import Partitioning

__all__ = ["masked_inputs", "masked_outputs", "masks_leave", "may_make_masks"]


def may_make_masks(layers: Sequence[Any]) -> bool:
    """Whether any of `layers`, or a layer inside them, may attach a mask to its output."""
    return any(_is_source(sub) for layer in layers for sub in all_layers(layer))


def _is_source(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
        return True
    own_class = not type(layer).__module__.startswith("keras.")
    return own_class and type(layer).compute_mask is not keras.Layer.compute_mask


def masked_inputs(graph: FlatGraph, table: Partitioning) -> frozenset[tuple[int, int]]:
    """The pairs (tensor, stage) in which the stage takes the tensor with a mask.

    What comes after the last stage, the loss, counts as one more stage. The stages are traced one
    after the other on the same tensors: some layers (attention) use up the masks of their inputs,
    so that later stages find none where earlier ones did.
    """
    if not may_make_masks([layer for call in graph.calls for layer in call.layers]):
        return frozenset()
    stages = range(table.num_stages)
    functions = [
        graph.function(table.stage_inputs[n], table.stage_outputs[n], table.operations(n))
        for n in stages
    ]
    masked: list[tuple[int, int]] = []

    context = CallContext()

    def trace(inputs: list[Any]) -> Any:
        tensors = dict(zip(graph.inputs, inputs, strict=True))
        for stage, function in zip(stages, functions, strict=True):
            taken = [tensors[n] for n in table.stage_inputs[stage]]
            masked.extend(_with_mask(table.stage_inputs[stage], taken, stage))
            tensors.update(zip(table.stage_outputs[stage], function(taken, context), strict=True))
        leaving = table.stage_outputs[-1]
        masked.extend(_with_mask(leaving, [tensors[n] for n in leaving], table.num_stages))
        return tensors[graph.inputs[0]]

    symbolic_output(trace, [graph.tensors[n] for n in graph.inputs])
    return frozenset(masked)


def _with_mask(numbers: Sequence[int], tensors: Sequence[Any], stage: int) -> list[tuple[int, int]]:
    pairs = zip(numbers, tensors, strict=True)
    return [(n, stage) for n, tensor in pairs if get_mask(tensor) is not None]


def masks_leave(table: Partitioning, masked: frozenset[tuple[int, int]]) -> bool:
    """Whether an output of the model has a mask, from the pairs of `masked_inputs`."""
    return any(stage == table.num_stages for _, stage in masked)


def masked_outputs(
    table: Partitioning, masked: frozenset[tuple[int, int]], stage: int
) -> tuple[int, ...]:
    """The output tensors of `stage` that some later stage takes with a mask, in order."""
    sent = [edge for edge in table.edges if edge.producer == stage]
    wanted = {edge.tensor for edge in sent if (edge.tensor, edge.consumer) in masked}
    return tuple(n for n in table.stage_outputs[stage] if n in wanted)
