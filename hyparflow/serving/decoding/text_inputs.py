"""What a language model is called with: tokens, and nothing that is not text."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["require_text_inputs", "text_inputs"]

_NEEDED, _KNOWN = {"token_ids", "padding_mask"}, {"token_ids", "padding_mask", "position_ids"}


def require_text_inputs(model: Any) -> None:
    """Check that a model takes tokens, and nothing that is not text.

    Raises:
        ValueError: naming the model, if not.
    """
    try:
        inputs = model.input
    except (AttributeError, ValueError):  # a model that is no graph of layers
        inputs = None
    names = set(inputs) if isinstance(inputs, dict) else set()
    if not _NEEDED <= names <= _KNOWN or not hasattr(model, "backbone"):
        taken = ", ".join(f"'{name}'" for name in sorted(names)) or "that have no names"
        raise ValueError(
            "A model that is served must be a causal language model of KerasHub whose inputs are "
            f"tokens and their mask. Received: '{model.name}' of class '{type(model).__name__}' "
            f"with inputs {taken}. Use a model of text alone, or `model.generate`."
        )


def text_inputs(model: Any, tokens: Any, positions: Any) -> dict[str, Any]:
    """The inputs for these tokens, (rows, tokens), at these positions of their rows."""
    tokens = tf.convert_to_tensor(tokens)
    inputs = {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
    if "position_ids" in model.input:
        inputs["position_ids"] = tf.convert_to_tensor(positions)
    return inputs
