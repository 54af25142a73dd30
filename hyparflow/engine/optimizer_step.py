"""The optimizer step of one rank: regularize, unscale, clip, apply, with the user's own optimizer.

The optimizer is built for all of the model's weights, so that its state can be saved as plain
Keras saves it, and applied to the weights that this rank owns. Two things need the other
partitions: the global norm, to which each adds the squares of the weights that it counts, once per
weight; and whether a scaled gradient overflowed, since one overflow skips the step on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.experts.expert_shards import ExpertShards
from hyparflow.engine.gradients.overwritten import require_one_call
from hyparflow.engine.weight_update import Member, WeightUpdate
from hyparflow.engine.weights.shards import Shards
from hyparflow.engine.weights.shared_optimizer_state import written_by_several
from hyparflow.engine.weights.weight_groups import WeightGroup
from hyparflow.model.keras_internals.deferred_variables import (
    deferring,
    is_absent,
    is_deferring,
    release,
)
from hyparflow.model.keras_internals.optimizer import (
    count_finite_step,
    inner_optimizer,
    skip_overflowed_step,
    step_counter,
    updates_alike,
    updates_each_alone,
)
from hyparflow.model.keras_internals.shared_kernel_name import with_shared_kernel_name
from hyparflow.model.keras_internals.weight_parts import standing_in

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
        groups: the weights in groups; what is traced for one serves for others of its kind.
        shards: which of the weights this rank updates; None if it updates all.
        experts: which experts this rank updates; None if it updates all.
        counting: the ranks whose weights make up norms; by default those of the replica.
    """

    def __init__(
        self,
        model: Any,
        variables: Sequence[Any],
        counted: Sequence[bool],
        partitions: Communicator,
        groups: Sequence[WeightGroup],
        shards: Shards | None = None,
        experts: ExpertShards | None = None,
        counting: Communicator | None = None,
    ) -> None:
        self._model, self._optimizer = model, model.optimizer
        self._inner = inner_optimizer(model.optimizer)
        self._variables = list(variables)
        self._members = [Member(v, c) for v, c in zip(variables, counted, strict=True)]
        self._counting = counting or partitions
        self._shards, self._experts = shards, experts
        in_parts = partitions.size > 1 or shards is not None or experts is not None
        if not self._optimizer.built:
            _build(self._optimizer, model, in_parts)
        if in_parts:
            _require_apart(self._optimizer, model)
        self._parts = {} if shards is None else shards.divide(self._optimizer)
        if experts is not None:
            self._parts |= experts.divide(self._optimizer)
        for position, part in self._parts.items():
            self._members[position] = Member(part.rows, counted[position])
        self.given: list[int] = []
        numbers = {id(v): number for number, v in enumerate(model.trainable_variables)}
        self.numbers = [numbers[id(v)] for v in variables]
        self._trains = bool(numbers)  # whether any rank trains weights
        self._unproved = any(v.overwrite_with_gradient for v in variables)
        self._may_skip = self._optimizer is not self._inner  # after an overflow
        self._touched: dict[int, Any] = {}  # by id
        self._groups = list(groups) if shards is None else shards.groups(groups)
        self.compile_anew()

    def compile_anew(self) -> None:
        """Trace the step again, with the present settings of optimizer and regularizers.

        Raises:
            ValueError: if divided weights do not allow these settings.
        """
        if self._shards is not None:
            self._shards.require_divisible(self._optimizer)
        if self._experts is not None:
            self._experts.require_divisible(self._optimizer)
        for part in self._parts.values():
            part.rows.regularizer = part.whole.regularizer
        apart = len(self._groups) > 1 and updates_each_alone(self._optimizer, self._variables)
        everything = WeightGroup(tuple(sorted(p for g in self._groups for p in g.positions)), -1)
        first: dict[int, tuple[WeightGroup, WeightUpdate]] = {}
        self._updates: list[tuple[WeightGroup, WeightUpdate]] = []
        for group in self._groups if apart else [everything]:
            other, like = first.get(group.kind, (group, None))
            if like is not None and not self._alike(other, group):
                like = None
            members = [self._members[position] for position in group.positions]
            parts = list(self._parts.values())
            update = WeightUpdate(self._optimizer, members, not apart, like, parts)
            self._updates.append((group, update))
            first.setdefault(group.kind, (group, update))
        self._counts_apart = apart
        self._seen: set[tuple[int, ...]] = set()  # which gradients there were in some step

    def _alike(self, left: WeightGroup, right: WeightGroup) -> bool:
        """Whether the weights of two groups are updated alike."""
        pairs = [
            (self._members[a], self._members[b])
            for a, b in zip(left.positions, right.positions, strict=False)
        ]
        with standing_in(self._inner, list(self._parts.values())):
            return len(left.positions) == len(right.positions) and all(
                a.is_counted == b.is_counted and updates_alike(self._inner, a.variable, b.variable)
                for a, b in pairs
            )

    def loss_scale(self) -> float:
        """The factor of the loss in the backward, by which gradients are divided here."""
        return float(self._optimizer.scale_loss(1.0))

    def __call__(self, gradients: Sequence[Any], parts: int = 1) -> None:
        """Apply `gradients` (tensors, `tf.IndexedSlices` or None), one per weight.

        Args:
            gradients: summed over micro-batches, replicas and holders.
            parts: the number of parts of the batch that they were summed over.
        """
        with contextlib.nullcontext() if self._shards is None else self._shards.rows():
            self._apply(gradients, parts)

    def _apply(self, gradients: Sequence[Any], parts: int) -> None:
        if self._unproved and parts > 1:
            require_one_call(self._model, self._variables, gradients)
            self._unproved = False
        steps = [
            _Step(group, update, [gradients[position] for position in group.positions])
            for group, update in self._updates
        ]
        present = tuple(position for step in steps for position in step.positions)
        self.given = [self.numbers[position] for position in sorted(present)]
        norm = 0.0
        if any(update.clip for _, update in self._updates) or self._may_skip:
            total = np.array(sum(step.survey() for step in steps))
            self._counting.sum(total, "the global norm of the gradients")
            norm, overflowed = float(np.sqrt(total[0])), total[1] > 0
            if self._may_skip and overflowed:
                skip_overflowed_step(self._optimizer)
                return
        for step in steps:
            step.apply(norm)
        if self._may_skip and not present:
            count_finite_step(self._optimizer)
        if self._shards is not None:
            self._shards.share()
        if self._trains and (self._counts_apart or not present):
            step_counter(self._inner).assign_add(1)
        if present and present not in self._seen:  # a weight may have its first gradient late
            self._seen.add(present)
            used = [v for step in steps for v in step.used(norm)]
            used.append(step_counter(self._inner).value)
            self._touched |= {id(variable): variable for variable in used}

    def take_back(self) -> None:
        """Do not count a step without any gradient: plain Keras raises before it counts."""
        step_counter(self._inner).assign_sub(1)

    @property
    def touched(self) -> list[Any]:
        """The TensorFlow variables that a step read or wrote: the state this rank owns."""
        return list(self._touched.values())


class _Step:
    """One group's part of one step."""

    def __init__(self, group: WeightGroup, update: WeightUpdate, gradients: list[Any]) -> None:
        self._update, self._gradients = update, gradients
        self._present = update.present(gradients)
        self.positions = [group.positions[place] for place in self._present]

    def survey(self) -> np.ndarray:
        return np.array(self._update.survey(self._gradients, self._present))

    def apply(self, norm: float) -> None:
        if self._present:
            self._update.apply(self._gradients, self._present, tf.constant(norm, tf.float64))

    def used(self, norm: float) -> list[Any]:
        if not self._present:
            return []
        return self._update.used(self._gradients, self._present, tf.constant(norm, tf.float64))


def _require_apart(optimizer: Any, model: Any) -> None:
    """Check that an optimizer updates each weight by what is the weight's own.

    Raises:
        ValueError: if it keeps something that is made of several weights.
    """
    shared = written_by_several(optimizer, model.trainable_variables)
    if shared:
        raise ValueError(
            "An optimizer whose weights are updated by several ranks must keep what its "
            "`update_step` writes for each weight apart. Received: optimizer of class "
            f"'{type(inner_optimizer(optimizer)).__name__}', whose `update_step` writes {shared} "
            "for more than one weight. Use strategy='data' without shard_optimizer, or a variable "
            "for each weight."
        )


def _build(optimizer: Any, model: Any, in_parts: bool) -> None:
    """Make the optimizer's variables with the values that they have in plain `fit`.

    Plain `fit` makes them while a step is traced, so values that the optimizer assigns to them are
    lost, unless the model runs eagerly (ScheduleFreeAdamW: its momentum starts at 0 and not at the
    weights). That is repeated here, but without a trace: a variable made in one costs 15 ms.

    Where other ranks update some of the weights, variables take memory when they are used.
    """
    later: Any = deferring() if in_parts else contextlib.nullcontext([])
    if model.run_eagerly:
        with tf.variable_creator_scope(with_shared_kernel_name), later:
            optimizer.build(model.trainable_variables)
        return
    made: list[tuple[Any, Any]] = []  # with the first values

    def note(make: Callable[..., Any], **arguments: Any) -> Any:
        variable = with_shared_kernel_name(make, **arguments)
        if not is_deferring(arguments.get("initial_value")):
            made.append((variable, variable.read_value()))
        return variable

    with tf.variable_creator_scope(note), later as deferred:
        optimizer.build(model.trainable_variables)
    for variable, value in made:
        variable.assign(value)
    for variable, initial in deferred:
        if not is_absent(variable):
            release(variable, initial)
