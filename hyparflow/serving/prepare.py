"""Makes a model ready to serve: how it decodes, tried once, and kept with the model."""

from __future__ import annotations

from typing import Any

from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.serving.adapters import decoder_of
from hyparflow.serving.decoder import Decoder
from hyparflow.serving.runner import LocalRunner, Runner
from hyparflow.serving.self_test import require_right_logits

__all__ = ["learned_positions", "prepared_runner", "require_length"]

_KEPT = "_hyparflow_decoders"  # the attribute of a model


def prepared_runner(model: Any) -> Runner:
    """What computes the windows of a model.

    Raises:
        ValueError: if it is no language model that decodes right.
    """
    return LocalRunner(_tried_decoder(model))


def require_length(model: Any, length: int) -> None:
    """Check that a model knows so many positions.

    Raises:
        ValueError: if it has learned fewer.
    """
    learned = learned_positions(model)
    if learned is not None and length > learned:
        raise ValueError(
            f"A prompt and what follows must fit into the {learned} positions that the model has "
            f"learned. Received: max_length={length} for '{model.name}'."
        )


def learned_positions(model: Any) -> int | None:
    """How many positions a model has learned; None if it computes them."""
    import keras_hub

    kind = keras_hub.layers.PositionEmbedding
    found = [layer.sequence_length for layer in all_layers(model) if isinstance(layer, kind)]
    return min(found, default=None)


def _tried_decoder(model: Any) -> Decoder:
    """Compiled functions are kept with a model, as Keras keeps its own."""
    import keras_hub

    if not isinstance(model, keras_hub.models.CausalLM):
        raise ValueError(
            "A model that generates must be a `keras_hub.models.CausalLM`. Received: "
            f"{type(model).__name__}"
        )
    kept = vars(model).setdefault(_KEPT, {})
    jit = model.jit_compile
    if jit not in kept:
        decoder = decoder_of(model)
        require_right_logits(model, decoder, vocabulary_of(model))
        kept[jit] = decoder
    found: Decoder = kept[jit]
    return found


def vocabulary_of(model: Any) -> int:
    """How many tokens there are."""
    return int(model.backbone.vocabulary_size)
