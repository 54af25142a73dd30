"""The optimizer step of one rank: regularize, clip, apply, with the user's own optimizer.

The optimizer is built for all of the model's weights, so that its state can be saved as plain
Keras saves it, and applied to those that this rank owns. Only clipping by the global norm needs
the other partitions: each adds the squares of the weights that it counts, once per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from hyparflow import keras_internals
from hyparflow.comm import Communicator
from hyparflow.stage import gradients_of

__all__ = ["Update"]


class Update:
    """Applies summed gradients to the weights of one rank.

    Args:
        model: the compiled model.
        variables: the weights that this rank trains.
        counted: for each, whether this rank counts it in norms and penalties (the first of its
            holders does).
        partitions: the ranks of this replica.
        regularize: whether weight regularization is added here (it is not where the model's
            own `compute_loss` has it already).
    """

    def __init__(
        self,
        model: Any,
        variables: Sequence[Any],
        counted: Sequence[bool],
        partitions: Communicator,
        regularize: bool = True,
    ) -> None:
        self._optimizer = model.optimizer
        self._variables = list(variables)
        self._counted = list(counted)
        self._partitions = partitions
        self._regularized = [
            index for index, v in enumerate(variables) if regularize and v.regularizer is not None
        ]
        if not self._optimizer.built:
            self._optimizer.build(model.trainable_variables)
        self._clip = float(self._optimizer.global_clipnorm or 0.0)
        self._penalty = tf.function(self._trace_penalty, autograph=False)
        self._prepare = tf.function(self._trace_prepare, autograph=False, reduce_retracing=True)
        self._apply = tf.function(self._trace_apply, autograph=False, reduce_retracing=True)
        self._touched: list[Any] = []

    @property
    def has_penalty(self) -> bool:
        """Whether this rank counts any weight regularization."""
        return any(self._counted[index] for index in self._regularized)

    def penalty(self) -> float:
        """The weight regularization that this rank counts, with the present weights."""
        return float(self._penalty()) if self.has_penalty else 0.0

    def _trace_penalty(self) -> Any:
        counted = [index for index in self._regularized if self._counted[index]]
        return tf.add_n([self._regularization(index) for index in counted])

    def _regularization(self, index: int) -> Any:
        variable = self._variables[index]
        return ops.sum(variable.regularizer(variable))

    def __call__(self, gradients: Sequence[Any]) -> None:
        """Apply `gradients` (tensors, `tf.IndexedSlices` or None), one per weight."""
        present = [
            index
            for index in range(len(self._variables))
            if gradients[index] is not None or index in self._regularized
        ]
        norm = tf.zeros((), tf.float64)
        values = [gradients[index] for index in present]
        if self._clip:
            values, squares = self._prepare(values, tuple(present))
            total = np.array([float(squares)])
            self._partitions.sum(total, "the global norm of the gradients")
            norm = tf.constant(np.sqrt(total[0]), tf.float64)
        if present:
            self._apply(values, tuple(present), norm)
            if not self._touched:
                concrete = self._apply.get_concrete_function(values, tuple(present), norm)
                self._touched = list(concrete.graph.variables)
        else:
            self._optimizer.iterations.assign_add(1)

    @property
    def touched(self) -> list[Any]:
        """The TensorFlow variables that the last step read or wrote: the state this rank owns."""
        return self._touched

    def _trace_prepare(self, values: list[Any], present: tuple[int, ...]) -> tuple[list[Any], Any]:
        """Add the regularization's gradient; sum the squares of what this rank counts."""
        values = self._regularize(values, present)
        squares = [
            tf.cast(ops.sum(ops.square(_values(value))), tf.float64)
            for value, index in zip(values, present, strict=True)
            if self._counted[index]
        ]
        return values, tf.add_n(squares) if squares else tf.zeros((), tf.float64)

    def _trace_apply(self, values: list[Any], present: tuple[int, ...], norm: Any) -> None:
        if self._clip:
            # With a finite norm the second term is 0; with NaN or inf it makes the scale NaN,
            # as Keras's own clipping does.
            scale = self._clip * tf.minimum(1.0 / norm, 1.0 / self._clip) + (norm - norm)
            values = [_scaled(value, scale) for value in values]
        else:
            values = self._regularize(values, present)
        variables = [self._variables[index] for index in present]
        with keras_internals.applying_part(self._optimizer, self._variables):
            self._optimizer.apply(values, variables)

    def _regularize(self, values: list[Any], present: tuple[int, ...]) -> list[Any]:
        """Add the gradient of weight regularization, once, after all sums."""
        values = list(values)
        positions = [p for p, index in enumerate(present) if index in self._regularized]
        gradients = gradients_of(
            lambda: [self._regularization(present[p]) for p in positions],
            [self._variables[present[p]].value for p in positions],
        )
        for position, gradient in zip(positions, gradients, strict=True):
            value = values[position]
            values[position] = gradient if value is None else tf.convert_to_tensor(value) + gradient
        return values


def _values(gradient: Any) -> Any:
    """The values of a gradient, those of a sparse one as they come."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _scaled(gradient: Any, scale: Any) -> Any:
    dense = tf.convert_to_tensor(gradient)
    return dense * tf.cast(scale, dense.dtype)
