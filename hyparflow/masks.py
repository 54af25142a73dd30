"""Which tensors of a model carry a Keras mask.

A mask is an attribute of a tensor, so it does not cross a cut by itself. Models without any
source of masks (nearly all image models) cost nothing here; for the others the whole graph is
traced once, which every rank does alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hyparflow import keras_internals
from hyparflow.graph import FlatGraph

__all__ = ["masked_tensors", "may_make_masks"]


def may_make_masks(layers: Sequence[Any]) -> bool:
    """Whether any of `layers`, or a layer inside them, may attach a mask to its output."""
    return any(_is_source(sub) for layer in layers for sub in keras_internals.all_layers(layer))


def _is_source(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
        return True
    own_class = not type(layer).__module__.startswith("keras.")
    return own_class and type(layer).compute_mask is not keras.Layer.compute_mask


def masked_tensors(graph: FlatGraph) -> frozenset[int]:
    """The numbers of the tensors in `graph` that carry a mask when the model runs."""
    if not may_make_masks([layer for call in graph.calls for layer in call.layers]):
        return frozenset()
    numbers = range(len(graph.tensors))
    function = graph.function(graph.inputs, numbers, range(len(graph.calls)))
    masked: list[int] = []

    def trace(inputs: list[Any]) -> Any:
        tensors = function(inputs)
        masked.extend(n for n in numbers if keras_internals.get_mask(tensors[n]) is not None)
        return tensors[0]

    graph.mode.training = False
    keras_internals.symbolic_output(trace, [graph.tensors[n] for n in graph.inputs])
    return frozenset(masked)
