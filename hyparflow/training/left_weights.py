"""What `gather=False` leaves: a model whose weights are each at the ranks of their partition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.stored_values import saving_by_disk
from hyparflow.training.call import Call

__all__ = ["borrowing", "goes_to_all", "lend", "note_left", "take_back"]

_LEFT = "_hyparflow_left"  # attribute of a variable: what moves it, and others, between owners


def note_left(model: Any, sync: WeightSync | None) -> None:
    """Note that weights are left where they are, or with None that they are everywhere."""
    for left in _left(model):
        _forget(left)
    if sync is not None and sync.holdings.parts:
        for variable in sync.variables:
            vars(variable)[_LEFT] = sync


def _forget(left: WeightSync) -> None:
    for variable in left.variables:
        vars(variable).pop(_LEFT, None)


def _gather(left: WeightSync) -> None:
    left.gather()
    left.holdings.divided.release()
    _forget(left)


def _left(model: Any) -> list[WeightSync]:
    """What moves variables of a model that were left at their owners, maybe as another model's."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.weights, *([] if optimizer is None else optimizer.variables)]
    noted = [vars(variable).get(_LEFT) for variable in variables]
    return list({id(sync): sync for sync in noted if sync is not None}.values())


def goes_to_all(call: Call, model: Any, world: World) -> bool:
    """Whether all ranks get all weights after a call. Collective.

    A call that does not train leaves weights where they were, unless it is told otherwise.
    """
    if call.options.gather is not None:
        return call.options.gather
    apart = any(map(is_absent, model.weights))
    return call.method == "fit" or not world.broadcast_object(apart, LEADER, "where weights are")


def take_back(model: Any, sync: WeightSync) -> None:
    """Gather what was left by an engine of other partitions than the present one's. Collective."""
    for left in _left(model):
        if left is not sync:
            _gather(left)


def lend(model: Any, world: World) -> None:
    """Owners: give the leader what it asks for, until it ends `borrowing`. Collective."""
    left = _only_left(model)
    if left is None:
        return
    left.gather_to_leader(everything=False)
    if world.rank != LEADER:
        while (number := _told(None, world)) is not None:
            left.lend(number)


@contextlib.contextmanager
def borrowing(model: Any, world: World) -> Iterator[None]:
    """While open, the leader can save the model; it has few of the others' weights at once."""
    left = _only_left(model)
    if left is None:
        yield
        return

    def ask(variable: Any) -> Any:
        left.lend(_told(left.number(variable), world))
        return variable.value

    left.holdings.fetch = ask
    try:
        with saving_by_disk():
            yield
    finally:
        left.holdings.fetch = None
        _told(None, world)
        left.drop()


def _only_left(model: Any) -> WeightSync | None:
    """What moves the weights that were left; those of several calls are gathered. Collective."""
    left = _left(model)
    if len(left) < 2:
        return left[0] if left else None
    for sync in left:
        _gather(sync)
    return None


def _told(number: int | None, world: World) -> Any:
    """The number that the leader tells: of a weight, or None when it asks for nothing more."""
    return world.broadcast_object(number, LEADER, "the weights that the leader asks for")
