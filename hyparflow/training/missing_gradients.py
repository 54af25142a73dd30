"""Reports weights without a gradient as plain Keras does, found over all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import users_stack_level
from hyparflow.comm.world import World
from hyparflow.engine.rank_engine import Learner
from hyparflow.model.keras_internals.optimizer import check_given

__all__ = ["compare_gradients", "require_gradients"]

_WHAT = "which weights have gradients"


def compare_gradients(model: Any, world: World, learner: Learner) -> None:
    """After the first step, raise or warn as Keras does of weights without a gradient. Collective.

    Also warns of weights whose sparse gradients may be joined differently from plain Keras.

    Args:
        model: the user's model.
        world: all ranks.
        learner: that of this rank.

    Raises:
        ValueError: Keras's own, on all ranks, if no weight has a gradient.
    """
    numbers = learner.update.numbers
    unclear = {numbers[position] for position in learner.reducer.unclear}
    if learner.compared:
        _say_unclear(model, unclear - learner.unclear)  # only this rank knows
        learner.unclear |= unclear
        return
    learner.compared = True
    everyone = world.all_gather_objects((learner.update.given, unclear), _WHAT)
    given = {number for numbers, _ in everyone for number in numbers}
    learner.unclear = {number for _, numbers in everyone for number in numbers}
    if not given and model.trainable_variables:
        learner.update.take_back()
    _say(model, given, world.rank == LEADER)
    if world.rank == LEADER:
        _say_unclear(model, learner.unclear)


def _say_unclear(model: Any, numbers: set[int]) -> None:
    if not numbers:
        return
    weights = model.trainable_variables
    paths = [weights[number].path for number in sorted(numbers)]
    warnings.warn(
        "A table must be looked up either by each sample, or by all samples in common, for its "
        "gradients to be joined over micro-batches and replicas as in one process. Received: "
        f"{paths}, of which some rows are looked up by each sample and others in common, or it "
        "cannot be told. Optimizers that square gradients, as Adam does, and norms differ from "
        "plain Keras's. Remedy: a table for each, or one replica and num_microbatches=1 "
        "(strategy='model').",
        stacklevel=users_stack_level(),
    )


def require_gradients(model: Any, count: int, take_back: Callable[[], object]) -> None:
    """On the leader after each step, raise as Keras does if no weight has a gradient.

    Args:
        model: the user's model.
        count: how many gradients the optimizers of all ranks were given.
        take_back: makes all ranks not count the step.

    Raises:
        ValueError: Keras's own, if it is none.
    """
    if not count and model.trainable_variables:
        take_back()
        check_given(model.optimizer, model.trainable_variables, set())


def _say(model: Any, given: set[int], is_leader: bool) -> None:
    weights = model.trainable_variables
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if weights:
            with abort.alike():
                check_given(model.optimizer, weights, given)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=1)
    for warning in said if is_leader else ():
        warnings.warn(warning.message, stacklevel=users_stack_level())
