"""Moving statistics of BatchNormalization, which replicas move by different rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.weights.pieces import value_of
from hyparflow.model.keras_internals.deferred_variables import overwrite
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["average", "moving_statistics"]


def moving_statistics(model: Any) -> list[Any]:
    """The moving means and variances in a model."""
    return [
        variable
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in layer.non_trainable_variables
        if "float" in variable.dtype
    ]


def average(statistics: Sequence[Any], peers: Communicator) -> None:
    """Average them over the replicas. Collective."""
    if peers.size == 1 or not statistics:
        return
    values = [value_of(variable) for variable in statistics]
    flat = np.concatenate([value.astype(np.float64).ravel() for value in values])
    peers.sum(flat, "the average of moving statistics")
    flat /= peers.size
    start = 0
    for variable, value in zip(statistics, values, strict=True):
        new = flat[start : start + value.size].astype(value.dtype)
        overwrite(variable, new.reshape(value.shape))
        start += value.size
