"""What one stage computes: a part of the graph, or the whole model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.loss.additive_metrics import weighting
from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.layers import (
    additional_losses,
    all_layers,
    call_model,
    get_mask,
    layer_metrics,
    set_mask,
    standardize_inputs,
)
from hyparflow.model.masks import masked_outputs
from hyparflow.pipeline.partition import Partitioning

__all__ = ["StageCall", "graph_body", "model_body"]

# (inputs, training, share) -> (flat outputs, losses that the stage's layers added)
StageCall = Callable[[Any, bool, Any], tuple[list[Any], list[Any]]]


def graph_body(
    graph: FlatGraph,
    table: Partitioning,
    stage: int,
    masked: frozenset[tuple[int, int]],
    sums: Collection[tuple[int, int]] = (),
) -> StageCall:
    """The body of a stage cut out of `graph`.

    The first stage takes the user's inputs as `fit` gives them; a later stage takes the flat list
    of its input tensors, then the masks of the inputs that have one. It returns the outputs, then
    the masks of the outputs that a later stage takes with one.

    Args:
        graph: the model's flat graph.
        table: how it is cut.
        stage: the stage's number.
        masked: from `hyparflow.model.masks.masked_inputs`.
        sums: (id of a layer, position) of losses that layers add, and that are sums over rows.
    """
    inputs, outputs = table.stage_inputs[stage], table.stage_outputs[stage]
    function = graph.function(inputs, outputs, table.operations(stage))
    with_mask = [position for position, n in enumerate(inputs) if (n, stage) in masked]
    layers = [layer for n in table.operations(stage) for layer in graph.calls[n].layers]
    metrics = layer_metrics(layers)
    sent_masks = [outputs.index(n) for n in masked_outputs(table, masked, stage)]
    crossing = {edge.tensor for edge in table.edges if edge.producer == stage}
    unmasked = [p for p, n in enumerate(outputs) if n in crossing and p not in sent_masks]

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        context = CallContext(training, share, sums)
        if stage == 0:
            tensors = standardize_inputs(graph.functional, values)
        else:
            tensors = list(values[: len(inputs)])
            for position, mask in zip(with_mask, values[len(inputs) :], strict=True):
                if mask is not None:  # it may come with some batches only
                    tensors[position] = tf.identity(tensors[position])
                    set_mask(tensors[position], mask)
        with weighting(metrics, share):
            results = function(tensors, context)
        for position in unmasked:
            if get_mask(results[position]) is not None:
                raise _unforeseen_mask(graph.maker(outputs[position]))
        masks = [get_mask(results[position]) for position in sent_masks]
        return results + masks, context.losses

    return body


def _unforeseen_mask(name: str) -> Exception:
    return RuntimeError(
        "A tensor that crosses a cut may have a Keras mask only where the model's symbolic call "
        f"has one. Received: a mask on the output of '{name}', which has none when the layer is "
        "called on symbolic tensors. Let its `compute_mask` return a mask there too, or cut the "
        "model elsewhere, with `lpp`."
    )


def model_body(model: Any, sums: Collection[tuple[int, int]] = ()) -> StageCall:
    """The body of a stage that is the whole model: its own call, whatever its class.

    Args:
        model: the model.
        sums: (id of a layer, position) of losses that layers add, and that are sums over rows.
    """

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        layers = all_layers(model, include_self=False)
        with weighting(layer_metrics(layers), share):
            outputs = call_model(model, values, training)
        body.structure = keras.tree.map_structure(lambda _: None, outputs)  # type: ignore[attr-defined]
        return keras.tree.flatten(outputs), additional_losses(model, share, sums)

    return body
