"""Moving statistics of BatchNormalization, which replicas move by different rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.comm.communicator import Communicator
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
    flat = np.concatenate([v.numpy().astype(np.float64).ravel() for v in statistics])
    peers.sum(flat, "the average of moving statistics")
    flat /= peers.size
    start = 0
    for variable in statistics:
        size = int(np.prod(variable.shape, dtype=np.int64))
        variable.assign(flat[start : start + size].reshape(variable.shape))
        start += size
