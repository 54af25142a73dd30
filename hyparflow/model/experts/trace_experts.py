"""`hyparflow.trace_experts`: which experts of a model tokens visit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.text import shortened
from hyparflow.model.experts.routing_recorder import (
    RoutingRecorder,
    names_of_layers,
    routed_layers,
)
from hyparflow.model.experts.token_batches import batches_of
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["trace_experts"]


def trace_experts(
    model: Any, inputs: Any, *, batch_size: int = 32, sequence_length: int | None = None
) -> RoutingTrace:
    """Record which experts of a model tokens are sent to, layer by layer.

    The model computes the inputs, in one process, as ``model(inputs, training=False)`` does. Tokens
    that the input ``padding_mask`` or a mask of Keras's leaves out do not count.

    Args:
        model: A Keras model with `hyparflow.layers.MixtureOfExperts`, or a model of KerasHub with
            experts: Mixtral, Qwen MoE, Qwen3 MoE, GPT-OSS or Gemma 4.
        inputs: Of the model: an array, or a list or dictionary of arrays, with a row for each
            sequence; or a `tf.data.Dataset` of batches, of which targets are left out. For a
            language model with a preprocessor also a text or a list of texts.
        batch_size: Integer. The number of rows that are computed at a time; a dataset has its own.
        sequence_length: Integer or `None`. Texts are cut into rows of so many tokens, each of which
            begins as a prompt does. `None`: as many as the preprocessor says.

    Returns:
        A `hyparflow.RoutingTrace`. Where a layer limits the tokens of an expert
        (`capacity_factor`), the choices are those before that.

    Raises:
        ValueError: If the model has no such layers, they differ in the number of their experts, of
            a token's experts or of tokens, shares are not finite, or the inputs are none.

    Example::

        trace = hf.trace_experts(model, tokens)
        placement = hf.place_experts(trace, num_ranks=4)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Experts are traced in a Keras model. "
            f"Received: model={shortened(model)} of type {type(model).__name__}"
        )
    recorder = None
    for batch in batches_of(model, inputs, batch_size, sequence_length):
        recorder = recorder or _recorder_of(model, batch)
        with recorder.observing():
            model(batch, training=False)
        recorder.keep(_padding_mask(batch))
    if recorder is None:
        raise ValueError("Experts are traced by tokens. Received: a dataset without any batch.")
    return recorder.trace(model.name)


def _recorder_of(model: Any, batch: Any) -> RoutingRecorder:
    if not all(layer.built for layer in all_layers(model)):
        model(batch, training=False)  # makes what it has not made yet
    layers = [layer for layer in routed_layers(all_layers(model)) if layer.built]
    if not layers:
        raise ValueError(
            "A model must have layers with experts to be traced: "
            "hyparflow.layers.MixtureOfExperts, or those of KerasHub's models. Received: "
            f"'{model.name}' of class '{type(model).__name__}', which has none that is known."
        )
    return RoutingRecorder(layers, names_of_layers(layers))


def _padding_mask(batch: Any) -> Any:
    """The input of this name, as KerasHub's models have it."""
    found = batch.get("padding_mask") if isinstance(batch, Mapping) else None
    return None if found is None else keras.ops.convert_to_numpy(found)
