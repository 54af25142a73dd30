"""Kinds of segments, and which of them are worth measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from hyparflow.model.graph import FlatGraph
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.segments import Segment

__all__ = ["SegmentKind", "most_of", "rate_of"]

_MEASURED = 0.9  # of what a model is estimated to take


class SegmentKind:
    """Segments that are alike.

    Attributes:
        group: the segments.
        name: of the first operation of the first one, and how many there are.
        cost: of one, as estimated.
        is_known: whether all operations are Keras's own, which estimates are for.
    """

    def __init__(self, graph: FlatGraph, operations: OperationGraph, group: list[Segment]) -> None:
        first = group[0].operations
        self.group = group
        self.name = f"{operations.operations[first.start].name}, {len(group)} times"
        self.cost = sum(operations.operations[index].cost for index in first) + len(first)
        own = [type(graph.calls[index].operation) for index in first]
        foreign = (keras.layers.Lambda, keras.layers.Wrapper)
        self.is_known = all(
            kind.__module__.startswith("keras.") and not issubclass(kind, foreign) for kind in own
        )


def most_of(kinds: Sequence[SegmentKind]) -> list[SegmentKind]:
    """The kinds that are measured, those first that take longest together."""
    order = sorted(kinds, key=lambda kind: kind.cost * len(kind.group), reverse=True)
    left = sum(kind.cost * len(kind.group) for kind in kinds)
    enough, chosen = (1 - _MEASURED) * left, []
    for kind in order:
        if left > enough or not kind.is_known:
            chosen.append(kind)
        left -= kind.cost * len(kind.group)
    return chosen


def rate_of(kinds: Sequence[SegmentKind], known: Mapping[SegmentKind, np.ndarray]) -> np.ndarray:
    """Seconds, [size, (forward, backward)], of a unit of cost of what was measured."""
    measured = [kind for kind in kinds if kind in known]
    seconds = sum(len(kind.group) * known[kind] for kind in measured)
    return np.asarray(seconds / sum(len(kind.group) * kind.cost for kind in measured))
