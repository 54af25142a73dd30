"""The optimizer step of one rank: regularize, unscale, clip, apply, with the user's own optimizer.

The optimizer is built for all of the model's weights, so that its state can be saved as plain
Keras saves it, and applied to the weights that this rank owns. Two things need the other
partitions: the global norm, to which each adds the squares of the weights that it counts, once per
weight; and whether a scaled gradient overflowed, since one overflow skips the step on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.gradients_of import gradients_of
from hyparflow.engine.gradients.overwritten import require_one_call
from hyparflow.engine.loss.penalty import regularization
from hyparflow.model.keras_internals.optimizer import (
    accumulated_gradient,
    applying_part,
    inner_optimizer,
    skip_overflowed_step,
)

__all__ = ["OptimizerStep"]


class OptimizerStep:
    """Applies summed gradients to the weights of one rank.

    Attributes:
        given: numbers of the model's weights that had a gradient in the last step.
        numbers: the numbers of this rank's weights among the model's.

    Args:
        model: the compiled model.
        variables: the weights that this rank trains.
        counted: for each, whether this rank counts it in norms (the first of its
            holders does).
        partitions: the ranks of this replica.
    """

    def __init__(
        self,
        model: Any,
        variables: Sequence[Any],
        counted: Sequence[bool],
        partitions: Communicator,
    ) -> None:
        self._model, self._optimizer = model, model.optimizer
        self._inner = inner_optimizer(model.optimizer)
        self._variables = list(variables)
        self._counted = list(counted)
        self._partitions = partitions
        self._regularized = [
            index for index, v in enumerate(variables) if v.regularizer is not None
        ]
        if not self._optimizer.built:
            _build(self._optimizer, model)
        self.given: list[int] = []
        numbers = {id(v): number for number, v in enumerate(model.trainable_variables)}
        self.numbers = [numbers[id(v)] for v in variables]
        self._trains = bool(numbers)  # whether any rank trains weights
        self._unproved = any(v.overwrite_with_gradient for v in variables)
        self._may_skip = self._optimizer is not self._inner  # after an overflow
        self._touched: dict[int, Any] = {}  # by id
        self.compile_anew()

    def compile_anew(self) -> None:
        """Trace the step again, with the present settings of optimizer and regularizers."""
        self._clip = float(self._inner.global_clipnorm or 0.0)
        self._accumulated = int(self._inner.gradient_accumulation_steps or 1)
        self._survey = FixedFunction(self._trace_survey)
        self._apply = FixedFunction(self._trace_apply)
        self._seen: set[tuple[int, ...]] = set()  # which gradients there were in some step

    def loss_scale(self) -> float:
        """The factor of the loss in the backward, by which gradients are divided here."""
        return float(self._optimizer.scale_loss(1.0))

    def __call__(self, gradients: Sequence[Any], parts: int = 1) -> None:
        """Apply `gradients` (tensors, `tf.IndexedSlices` or None), one per weight.

        Args:
            gradients: summed over micro-batches, replicas and holders.
            parts: the number of parts of the batch that they were summed over.
        """
        if self._unproved and parts > 1:
            require_one_call(self._model, self._variables, gradients)
            self._unproved = False
        present = [
            index
            for index in range(len(self._variables))
            if gradients[index] is not None or index in self._regularized
        ]
        self.given = [self.numbers[index] for index in present]
        values = [gradients[index] for index in present]
        norm = 0.0
        if self._clip or self._may_skip:
            total = np.array(self._survey(values, tuple(present)))
            self._partitions.sum(total, "the global norm of the gradients")
            norm, overflowed = float(np.sqrt(total[0])), total[1] > 0
            if self._may_skip and overflowed:
                skip_overflowed_step(self._optimizer)
                return
        arguments = [*values, tf.constant(norm, tf.float64)], tuple(present)
        self._apply(*arguments)
        if not present and self._trains:
            self._inner.iterations.assign_add(1)
        elif tuple(present) not in self._seen:  # a weight may have its first gradient late
            self._seen.add(tuple(present))
            used = self._apply.concrete(*arguments).variables
            self._touched |= {id(variable): variable for variable in used}

    def take_back(self) -> None:
        """Do not count a step without any gradient: plain Keras raises before it counts."""
        self._inner.iterations.assign_sub(1)

    @property
    def touched(self) -> list[Any]:
        """The TensorFlow variables that a step read or wrote: the state this rank owns."""
        return list(self._touched.values())

    def _trace_survey(self, values: list[Any], present: tuple[int, ...]) -> Any:
        """The sum of squares of the values to be clipped, and the number of gradients with an
        overflow, of the weights that this rank counts.
        """
        squares = overflows = tf.zeros((), tf.float64)
        scale = self._optimizer.scale_loss(tf.ones((), tf.float64))
        for value, index in zip(self._regularize(values, present), present, strict=True):
            finite = tf.reduce_all(tf.math.is_finite(_values(value)))
            overflows += tf.cast(tf.logical_not(finite), tf.float64)
            if self._counted[index] and not self._variables[index].overwrite_with_gradient:
                clipped = self._to_be_clipped(index, value, scale)
                squares += tf.cast(ops.sum(ops.square(clipped)), tf.float64)
        return tf.stack([squares, overflows])

    def _to_be_clipped(self, index: int, value: Any, scale: Any) -> Any:
        """The value that Keras clips, without the loss scale: a step's gradient, or the mean of
        accumulated gradients.
        """
        scale = tf.cast(scale, _values(value).dtype)
        if self._accumulated == 1:
            return _values(value) / scale
        before = accumulated_gradient(self._inner, self._variables[index])
        return (tf.convert_to_tensor(value) / scale + before) / self._accumulated

    def _trace_apply(self, tensors: list[Any], present: tuple[int, ...]) -> None:
        *values, norm = tensors
        variables = [self._variables[index] for index in present]
        clip = (lambda gradients: _clipped(gradients, self._clip, norm)) if self._clip else None
        with applying_part(self._inner, self._variables, clip):
            self._optimizer.apply(self._regularize(values, present), variables)

    def _regularize(self, values: list[Any], present: tuple[int, ...]) -> list[Any]:
        """Add the gradient of weight regularization, once, after all sums."""
        values = list(values)
        scale = self._optimizer.scale_loss(1.0)
        positions = [p for p, index in enumerate(present) if index in self._regularized]
        gradients = gradients_of(
            lambda: [regularization(self._variables[present[p]]) for p in positions],
            [self._variables[present[p]].value for p in positions],
        )
        for position, gradient in zip(positions, gradients, strict=True):
            value, gradient = values[position], gradient * tf.cast(scale, gradient.dtype)
            values[position] = gradient if value is None else tf.convert_to_tensor(value) + gradient
        return values


def _build(optimizer: Any, model: Any) -> None:
    """Make the optimizer's variables with the values that they have in plain `fit`.

    Plain `fit` makes them while a step is traced, so values that the optimizer assigns to them are
    lost, unless the model runs eagerly (ScheduleFreeAdamW: its momentum starts at 0 and not at the
    weights). That is repeated here, but without a trace: a variable made in one costs 15 ms.
    """
    if model.run_eagerly:
        with tf.variable_creator_scope(_unnamed):
            optimizer.build(model.trainable_variables)
        return
    made: list[tuple[Any, Any]] = []  # with the first values

    def note(make: Callable[..., Any], **arguments: Any) -> Any:
        variable = _unnamed(make, **arguments)
        made.append((variable, variable.read_value()))
        return variable

    with tf.variable_creator_scope(note):
        optimizer.build(model.trainable_variables)
    for variable, value in made:
        variable.assign(value)


def _unnamed(make: Callable[..., Any], **arguments: Any) -> Any:
    """A variable of TensorFlow's without a name of its own.

    Each name makes another kernel, of 35 KB and 1 ms. Keras names its variables itself.
    """
    return make(**{**arguments, "name": "slot"})


def _values(gradient: Any) -> Any:
    """The values of a gradient; of a sparse one, its values without adding up rows."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _clipped(gradients: Sequence[Any], limit: float, norm: Any) -> list[Any]:
    """`gradients`, of the global norm `norm`, at most of norm `limit`."""
    # With a finite norm the second term is 0; with NaN or inf it makes the scale NaN, as Keras's
    # own clipping does.
    scale = limit * tf.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return [gradient * tf.cast(scale, gradient.dtype) for gradient in dense]
