"""Which layers of a model normalize over a batch."""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["normalized_layers"]


def normalized_layers(model: Any) -> list[Any]:
    """The BatchNormalization layers of `model`, in order."""
    layers = all_layers(model)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
