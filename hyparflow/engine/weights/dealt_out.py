"""Deals out the weights of a partition to its replicas, whole or in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.weight_groups import WeightGroup
from hyparflow.model.keras_internals.weight_parts import divides, may_be_divided
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.row_ranges import RowRanges
from hyparflow.pipeline.share_out import share_out_common, share_out_divided

__all__ = ["Owner", "dealt_out"]

Owner = int | RowRanges  # the replica that updates a weight, or the rows that each replica updates


def dealt_out(model: Any, place: Ownership, groups: Sequence[WeightGroup]) -> dict[int, Owner]:
    """The owner of each weight of this rank's partition, by id.

    A weight that several partitions hold has its owners in one replica: these add up its gradients.
    Where it is divided, each replica has the same rows of it in all of them.

    Args:
        model: the model.
        place: what this rank holds.
        groups: the weights that it trains, in groups.
    """
    grid, mine = place.grid, place.partition
    divisible = _divisible(model, grid.num_peers)
    found, loads = _common(model.trainable_variables, place, divisible)
    alone = [v for v in place.trained if id(v) not in found]
    order = {id(v): position for position, v in enumerate(alone)}
    dealt, parts = share_out_divided(
        [bytes_of(v) for v in alone],
        _together(place.trained, groups, order),
        grid.num_peers,
        loads[mine],
        [id(v) in divisible for v in alone],
    )
    for position, (variable, owner) in enumerate(zip(alone, dealt, strict=True)):
        split = parts.get(position)
        found[id(variable)] = owner if split is None else RowRanges.of(variable.shape, split)
    return {key: owner for key, owner in found.items() if mine in place.holders[key]}


def _divisible(model: Any, num_replicas: int) -> set[int]:
    """The weights, by id, that may be divided."""
    if not divides(model.optimizer):
        return set()
    large = [v for v in model.trainable_variables if math.prod(v.shape) >= num_replicas]
    return {id(v) for v in large if len(v.shape) and may_be_divided(v)}


def _common(
    weights: Sequence[Any], place: Ownership, divisible: set[int]
) -> tuple[dict[int, Owner], list[list[float]]]:
    """The owners of weights that several partitions hold; and what replicas of each have then.

    They are the same in all partitions. One that is more than half of a fair share is divided.
    """
    grid, holders = place.grid, place.holders
    common = [v for v in weights if len(holders[id(v)]) > 1]
    fair = [share / grid.num_peers for share in _sizes(weights, place)]
    split = [
        v
        for v in common
        if id(v) in divisible and any(bytes_of(v) > fair[p] / 2 for p in holders[id(v)])
    ]
    apart = {id(v) for v in split}
    whole = [v for v in common if id(v) not in apart]
    owners, loads = share_out_common(
        [bytes_of(v) for v in whole],
        [holders[id(v)] for v in whole],
        grid.num_partitions,
        grid.num_peers,
    )
    found: dict[int, Owner] = {id(v): owner for v, owner in zip(whole, owners, strict=True)}
    for variable in split:
        found[id(variable)] = RowRanges.of(variable.shape, [1] * grid.num_peers)
        for partition in holders[id(variable)]:
            part = bytes_of(variable) / grid.num_peers
            loads[partition] = [load + part for load in loads[partition]]
    return found, loads


def _sizes(weights: Sequence[Any], place: Ownership) -> list[int]:
    """The bytes of the weights that each partition trains."""
    return [
        sum(bytes_of(v) for v in weights if partition in place.holders[id(v)])
        for partition in range(place.grid.num_partitions)
    ]


def _together(
    trained: Sequence[Any], groups: Sequence[WeightGroup], order: dict[int, int]
) -> list[list[int]]:
    """The groups of weights that should have one owner: those of blocks that repeat."""
    together = []
    for group in groups:
        known = [id(trained[position]) for position in group.positions]
        positions = [order[key] for key in known if key in order]
        together += [positions] if group.kind >= 0 else [[position] for position in positions]
    return together
