"""Models whose attention has the serving hook, whose rows go on to other ranks on the way.

The graph of layers is cut behind each mixture of experts. What later calls take of a row travels to
its expert, and there the expert's part is added; so an iteration is a pipeline, all of whose stages
each rank has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.serving.coherent.rows_here import Mixtures, RowsHere, leaving_out
from hyparflow.serving.coherent.segments import TravelSegment, segments_of
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.hooked_model import HookedBody, HookedModel
from hyparflow.serving.decoding.text_inputs import text_inputs

__all__ = ["TravellingHookedModel"]


@dataclass(frozen=True)
class _Part:
    """A segment that can be called.

    Attributes:
        segment: the segment.
        body: from what it receives, tokens and their positions to what it sends.
    """

    segment: TravelSegment
    body: HookedBody


class TravellingHookedModel(HookedModel):
    """See `TravellingModel`.

    Args:
        model: the model.
        around: see `Around`; for calls in which tokens come home.
        mixtures: its layers with experts.
    """

    def __init__(self, model: Any, around: Around, mixtures: Mixtures) -> None:
        super().__init__(model, around)
        self._model, self._mixtures = model, mixtures
        self._graph = FlatGraph(model, opened_graph(model))
        names = [tensor.name for tensor in self._graph.functional.inputs]
        self._names = dict(zip(self._graph.inputs, names, strict=True))
        segments = segments_of(self._graph, [one.layer for one, _ in mixtures])
        with leaving_out(mixtures, lambda *_: None):
            self._parts = [_Part(segment, self._body_of(segment)) for segment in segments]

    def iterate(self, rows: RowsHere) -> Any:
        """See `TravellingModel.iterate`."""
        values, first = list[Any](), 0
        with leaving_out(self._mixtures, rows.note):
            for part in self._parts:
                positions = rows.own_positions
                given = [*values, tf.gather(rows.tokens, rows.numbers), positions]
                count = len(part.body.cache_sizes)
                caches = [rows.cache(first + n) for n in range(count)]
                values, changed = part.body.call(given, positions, caches)
                for number, cache in enumerate(changed):
                    rows.keep(first + number, cache)
                first += count
                if part.segment.made is not None:
                    values = _travelled(rows, part.segment, values)
        return values[0]

    def _body_of(self, segment: TravelSegment) -> HookedBody:
        function = self._graph.function(
            (*segment.received, *self._graph.inputs), segment.sent, segment.operations
        )

        def body(tensors: list[Any]) -> list[Any]:
            *received, tokens, positions = tensors
            own = text_inputs(self._model, tokens, positions)
            inputs = [own[self._names[number]] for number in self._graph.inputs]
            return function([*received, *inputs], CallContext())

        def samples() -> list[Any]:
            like = [self._graph.tensors[number] for number in segment.received]
            zeros = [tf.zeros([1, 1, *x.shape[2:]], x.dtype) for x in like]
            return [*zeros, *[tf.zeros([1, 1], tf.int32)] * 2]

        return HookedBody(body, samples)


def _travelled(rows: RowsHere, segment: TravelSegment, values: list[Any]) -> list[Any]:
    """What a segment sends, of the rows that are at their experts afterwards."""
    kept = [
        value
        for number, value in zip(segment.sent, values, strict=True)
        if number != segment.made or not segment.is_experts
    ]
    moved, mixed = rows.travel(kept)
    left = iter(moved)
    found = list[Any]()
    for number, value in zip(segment.sent, values, strict=True):
        if number != segment.made:
            found.append(next(left))
        elif segment.is_experts:
            found.append(tf.cast(mixed, value.dtype))
        else:
            found.append(next(left) + tf.cast(mixed, value.dtype))
    return found
