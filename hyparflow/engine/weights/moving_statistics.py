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

__all__ = ["ReplicaStatistics", "moving_statistics"]


def moving_statistics(model: Any) -> list[Any]:
    """The moving means and variances in a model."""
    return [
        variable
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in layer.non_trainable_variables
        if "float" in variable.dtype
    ]


class ReplicaStatistics:
    """Those of one rank's partition, which replicas move apart until they agree on the average.

    Attributes:
        variables: the statistics.

    Args:
        variables: the statistics.
        peers: the ranks that have them, too.
    """

    def __init__(self, variables: Sequence[Any], peers: Communicator) -> None:
        self.variables = list(variables)
        self._peers = peers

    @property
    def may_differ(self) -> bool:
        """Whether there are others."""
        return self._peers.size > 1 and bool(self.variables)

    def averages(self) -> list[np.ndarray]:
        """The averages over the replicas, in the order of the variables. Collective."""
        values = [value_of(variable) for variable in self.variables]
        if not self.may_differ:
            return [np.array(value) for value in values]
        flat = np.concatenate([value.astype(np.float64).ravel() for value in values])
        self._peers.sum(flat, "the average of moving statistics")
        flat /= self._peers.size
        pieces = np.split(flat, np.cumsum([value.size for value in values])[:-1])
        return [
            piece.astype(value.dtype).reshape(value.shape)
            for piece, value in zip(pieces, values, strict=True)
        ]

    def agree(self) -> None:
        """Let all replicas have the averages. Collective."""
        if self.may_differ:
            for variable, value in zip(self.variables, self.averages(), strict=True):
                overwrite(variable, value)
