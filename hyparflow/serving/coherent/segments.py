"""A graph of layers cut behind each mixture of experts: what rows need from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import Standardize
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["TravelSegment", "segments_of"]


@dataclass(frozen=True)
class TravelSegment:
    """Calls up to one that has experts, or to the end.

    Attributes:
        operations: their numbers.
        received: numbers of the tensors that they take from calls before.
        sent: of those that later calls take, of whatever was made so far.
        made: of the tensor that the experts' part is added to; None in the last segment.
        is_experts: whether `made` is that part, and nothing else.
    """

    operations: tuple[int, ...]
    received: tuple[int, ...]
    sent: tuple[int, ...]
    made: int | None
    is_experts: bool


def segments_of(graph: FlatGraph, experts: Sequence[Any]) -> list[TravelSegment]:
    """The segments of a model.

    Args:
        graph: the model.
        experts: its layers with experts.
    """
    calls, data = graph.calls, graph.operation_graph([]).operations
    first = [n for n, call in enumerate(calls) if isinstance(call.operation, Standardize)]
    anywhere = {*graph.inputs, *(x for n in first for x in data[n].outputs)}
    wanted = {id(layer) for layer in experts}
    ends = [n for n, call in enumerate(calls) if _layers_in(call) & wanted]
    found, begin = list[TravelSegment](), 0
    received: tuple[int, ...] = ()
    for end in [*ends, len(calls) - 1]:
        own = [n for n in range(begin, end + 1) if n not in first]
        is_last = len(found) == len(ends)
        later = {x for n in range(end + 1, len(calls)) for x in data[n].inputs} | {*graph.outputs}
        made = {*received, *(x for n in own for x in data[n].outputs)}
        sent = graph.outputs if is_last else tuple(sorted((made & later) - anywhere))
        found.append(
            TravelSegment(
                operations=(*first, *own),
                received=received,
                sent=tuple(sent),
                made=None if is_last else data[end].outputs[0],
                is_experts=not is_last and id(calls[end].operation) in wanted,
            )
        )
        begin, received = end + 1, tuple(sent)
    return found


def _layers_in(call: Any) -> set[int]:
    return {id(x) for layer in call.layers for x in all_layers(layer)}
