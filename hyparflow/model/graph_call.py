"""One call of a model's operation: a small `keras.Operation` around the user's layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.layers import (
    additional_losses,
    standardize_inputs,
    takes_training,
)

__all__ = ["CallContext", "GraphCall", "Standardize"]


@dataclass
class CallContext:
    """What all calls of one run through a graph share.

    Attributes:
        training: whether the model trains.
        share: the part of the global batch that passes through, n / B.
        sums: (id of a layer, position) of the added losses that are sums over rows.
        losses: what the layers have added to the loss so far.
    """

    training: bool = False
    share: Any = 1.0
    sums: Collection[tuple[int, int]] = ()
    losses: list[Any] = field(default_factory=list)


class GraphCall(keras.Operation):
    """One call of one of the model's operations.

    Passes `training` down as Keras's Functional model does, and collects what the layer adds
    to the loss.

    Args:
        operation: the operation that is called.
        outputs: symbolic tensors like those that the call returns.
        name: of the call, unique in the graph.
    """

    def __init__(self, operation: Any, outputs: Sequence[Any], name: str) -> None:
        super().__init__(name=name)
        self.operation = operation
        self.output_specs = tuple(outputs)
        self._takes_training = takes_training(operation)

    def call_in(self, context: CallContext, *args: Any, **kwargs: Any) -> Any:
        """Call the operation on tensors, as a part of the run that `context` describes."""
        if self._takes_training:
            kwargs["training"] = context.training
        # Inside of a scope, as inside of a model: at the root TensorFlow takes fewer names.
        with tf.name_scope("call"):
            outputs = self.operation(*args, **kwargs)
        if isinstance(self.operation, keras.Layer):
            context.losses += additional_losses(self.operation, context.share, context.sums)
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """New symbolic outputs with the shapes of the user's graph; calls no layer."""
        specs = [
            keras.KerasTensor(shape=x.shape, dtype=x.dtype, sparse=x.sparse)
            for x in self.output_specs
        ]
        return specs[0] if len(specs) == 1 else specs

    @property
    def layers(self) -> list[Any]:
        """The layer called, or nothing for a bare operation of `keras.ops`."""
        return [self.operation] if isinstance(self.operation, keras.Layer) else []


class Standardize(keras.Operation):
    """Prepares the arguments of a nested model as that model's `call` would."""

    def __init__(self, functional: Any) -> None:
        super().__init__(name=f"{functional.name}_inputs")
        self.functional = functional

    def call(self, inputs: Any) -> Any:
        """Cast and reorder `inputs`."""
        return standardize_inputs(self.functional, inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Symbolic tensors like the nested model's inputs."""
        return [keras.KerasTensor(shape=x.shape, dtype=x.dtype) for x in self.functional.inputs]
