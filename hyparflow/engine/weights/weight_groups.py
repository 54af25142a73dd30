"""A rank's weights in groups that are updated one like the other: those of units of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyparflow.model.graph import FlatGraph
from hyparflow.pipeline.units import Units

__all__ = ["WeightGroup", "weight_groups"]


@dataclass(frozen=True)
class WeightGroup:
    """Some of the weights that a rank trains.

    Attributes:
        positions: their places among all that it trains.
        kind: groups of one kind have weights of the same shapes, in the same order.
    """

    positions: tuple[int, ...]
    kind: int


def weight_groups(
    trained: Sequence[Any], stages: Sequence[int], known: tuple[FlatGraph, Units] | None
) -> list[WeightGroup]:
    """The groups of a rank's weights; together they have all.

    Args:
        trained: the weights that it trains.
        stages: the stages that it holds.
        known: the model's graph and the units of its stages; without them all are one group.
    """
    left = {id(variable): place for place, variable in enumerate(trained)}
    groups = []
    if known is not None:
        graph, units = known
        for number in (number for stage in stages for number in units.of_stage[stage]):
            variables = graph.variables(units.table.operations(number))
            mine = tuple(left.pop(id(v)) for v in variables if id(v) in left)
            if mine:
                groups.append(WeightGroup(mine, units.kinds[number]))
    if left:
        groups.append(WeightGroup(tuple(left.values()), -1))
    return groups
