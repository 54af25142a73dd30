"""Makes the weights of a model that has none yet, as Keras does at the first batch."""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.comm.recursion import deep_models
from hyparflow.model.keras_internals.compiled import has_overridden
from hyparflow.model.keras_internals.layers import call_model

__all__ = ["build_weights"]


def build_weights(model: Any, specs: Any) -> None:
    """Build `model`, unless it is built, for inputs of the types in `specs`."""
    if isinstance(model, keras.Sequential) and not model.built:
        with deep_models():
            model.build(specs.shape)
    if not model.built and has_overridden(model, "call"):
        zeros = keras.tree.map_structure(lambda spec: spec.zeros(), specs)
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, zeros)
        call_model(model, inputs, False)
