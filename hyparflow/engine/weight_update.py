"""The part of an optimizer step that belongs to one group of weights, as compiled functions.

Groups of one kind need to be traced once: what was traced for the first serves for the others, with
their weights and slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from keras import ops

from hyparflow.engine.compiled.captured import captured_tensors
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.gradients_of import gradients_of
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.loss.penalty import regularization
from hyparflow.model.keras_internals.optimizer import (
    accumulated_gradient,
    applying_part,
    inner_optimizer,
    learning_rates,
    slots_of,
    step_counter,
)
from hyparflow.model.keras_internals.weight_parts import WeightPart, standing_in

__all__ = ["Member", "WeightUpdate"]


@dataclass(frozen=True)
class Member:
    """One weight of a group.

    Attributes:
        variable: the weight.
        is_counted: whether this rank counts it in norms.
    """

    variable: Any
    is_counted: bool


class WeightUpdate:
    """Regularizes, clips and applies the gradients of some weights.

    Attributes:
        clip: the global norm to which gradients are clipped, or 0.
        survey_function, apply_function: what is traced here, for the updates that are like this.

    Args:
        optimizer: the model's.
        members: the weights.
        counts: whether applying them counts the step.
        like: the update of other weights that this one does alike.
        parts: this rank's parts of divided weights; members have their rows in place of the whole.
    """

    def __init__(
        self,
        optimizer: Any,
        members: Sequence[Member],
        counts: bool = True,
        like: WeightUpdate | None = None,
        parts: Sequence[WeightPart] = (),
    ) -> None:
        self._optimizer, self._inner = optimizer, inner_optimizer(optimizer)
        self._members, self._parts = list(members), list(parts)
        self._variables = [member.variable for member in members]
        self._counts = counts
        self.clip = float(self._inner.global_clipnorm or 0.0)
        self._accumulated = int(self._inner.gradient_accumulation_steps or 1)
        self.survey_function = FixedFunction(self._trace_survey)
        self.apply_function = FixedFunction(self._trace_apply)
        self._like = like
        self._serves: dict[tuple[int, ...], bool] = {}  # what was traced for `like`, by `present`
        if like is not None:
            self._alike = _Alike(self._inner, like.state(), self.state())
            self._survey_as_like = like.survey_function.on(self._alike.replace)
            self._apply_as_like = like.apply_function.on(self._alike.replace)

    def present(self, gradients: Sequence[Any]) -> tuple[int, ...]:
        """Places of the weights that change: those with a gradient, or with a regularizer."""
        return tuple(
            place
            for place, (variable, gradient) in enumerate(
                zip(self._variables, gradients, strict=True)
            )
            if gradient is not None or variable.regularizer is not None
        )

    def survey(self, gradients: Sequence[Any], present: tuple[int, ...]) -> Any:
        """The sum of squares of what is to be clipped, and how many gradients overflowed."""
        values = [gradients[place] for place in present]
        alike = self._is_served(values, present)
        return (self._survey_as_like if alike else self.survey_function)(values, present)

    def apply(self, gradients: Sequence[Any], present: tuple[int, ...], norm: Any) -> None:
        """Apply the gradients; `norm` is the global norm, a tensor."""
        values = [gradients[place] for place in present]
        alike = self._is_served(values, present)
        (self._apply_as_like if alike else self.apply_function)([*values, norm], present)

    def used(self, gradients: Sequence[Any], present: tuple[int, ...], norm: Any) -> list[Any]:
        """The variables (TensorFlow's) that `apply` reads or writes."""
        values = [gradients[place] for place in present]
        if self._like is None or not self._is_served(values, present):
            return list(self.apply_function.concrete([*values, norm], present).variables)
        theirs = self._like.apply_function.concrete([*values, norm], present).variables
        return [self._alike.variable(variable) for variable in theirs]

    def _is_served(self, values: list[Any], present: tuple[int, ...]) -> bool:
        """Whether what is traced for the group that this one is like does for these gradients."""
        if self._like is None or any(isinstance(value, tf.IndexedSlices) for value in values):
            return False
        if present not in self._serves:
            norm = tf.zeros((), tf.float64)
            traced = self._like.apply_function.concrete([*values, norm], present)
            self._serves[present] = self._alike.covers(captured_tensors(traced))
        return self._serves[present]

    def state(self) -> list[Any]:
        """The weights and their slots."""
        with standing_in(self._inner, self._parts):
            slots = [slot for v in self._variables for slot in slots_of(self._inner, v)]
        return [variable.value for variable in [*self._variables, *slots]]

    # --- to be traced ---

    def _trace_survey(self, values: list[Any], present: tuple[int, ...]) -> Any:
        squares = overflows = tf.zeros((), tf.float64)
        scale = self._optimizer.scale_loss(tf.ones((), tf.float64))
        for value, place in zip(self._regularize(values, present), present, strict=True):
            finite = tf.reduce_all(tf.math.is_finite(_values(value)))
            overflows += tf.cast(tf.logical_not(finite), tf.float64)
            member = self._members[place]
            if member.is_counted and not member.variable.overwrite_with_gradient:
                clipped = self._to_be_clipped(member.variable, value, scale)
                squares += tf.cast(ops.sum(ops.square(clipped)), tf.float64)
        return tf.stack([squares, overflows])

    def _to_be_clipped(self, variable: Any, value: Any, scale: Any) -> Any:
        """The value that Keras clips, without the loss scale: a step's gradient, or the mean of
        accumulated gradients.
        """
        scale = tf.cast(scale, _values(value).dtype)
        if self._accumulated == 1:
            return _values(value) / scale
        with standing_in(self._inner, self._parts):
            before = accumulated_gradient(self._inner, variable)
        return (tf.convert_to_tensor(value) / scale + before) / self._accumulated

    def _trace_apply(self, tensors: list[Any], present: tuple[int, ...]) -> None:
        *values, norm = tensors
        variables = [self._variables[place] for place in present]
        clip = (lambda gradients: _clipped(gradients, self.clip, norm)) if self.clip else None
        with (
            standing_in(self._inner, self._parts),
            applying_part(self._inner, self._variables, clip, self._counts),
        ):
            self._optimizer.apply(self._regularize(values, present), variables)

    def _regularize(self, values: list[Any], present: tuple[int, ...]) -> list[Any]:
        """Add the gradient of weight regularization, once, after all sums."""
        values = list(values)
        scale = self._optimizer.scale_loss(1.0)
        regularized = [
            (position, self._variables[place])
            for position, place in enumerate(present)
            if self._variables[place].regularizer is not None
        ]
        gradients = gradients_of(
            lambda: [regularization(variable) for _, variable in regularized],
            [variable.value for _, variable in regularized],
        )
        for (position, _), gradient in zip(regularized, gradients, strict=True):
            value, gradient = values[position], gradient * tf.cast(scale, gradient.dtype)
            values[position] = gradient if value is None else tf.convert_to_tensor(value) + gradient
        return values


class _Alike:
    """Weights and slots by those of another group.

    Args:
        optimizer: whose number of steps and learning rate both groups read.
        theirs, mine: weights and slots, in corresponding order.
    """

    def __init__(self, optimizer: Any, theirs: Sequence[Any], mine: Sequence[Any]) -> None:
        self._likeness = Likeness(theirs, mine)
        self._variables = {id(a): b for a, b in zip(theirs, mine, strict=True)}
        common = [step_counter(optimizer), *learning_rates(optimizer)]
        self._common = [variable.value.handle for variable in common]

    def replace(self, captured: Any) -> Any:
        """What this group has in place of what the other captured."""
        found = self._likeness.find(captured)
        return captured if found is None else found

    def covers(self, captured: Iterable[Any]) -> bool:
        """Whether all that the other captured has something in its place, or is common."""
        return all(
            self._likeness.find(tensor) is not None or any(tensor is x for x in self._common)
            for tensor in captured
        )

    def variable(self, variable: Any) -> Any:
        """This group's variable in place of one of the other's."""
        return self._variables.get(id(variable), variable)


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
