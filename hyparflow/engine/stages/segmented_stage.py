"""A stage of units of which segments are computed again before their backward.

Between forward and backward a segment keeps what its first unit takes, and the little that its
units draw; about as many segments as units in each give the least memory. Source: Chen et al.,
"Training deep nets with sublinear memory cost" (2016), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hyparflow.engine.loss.head import Labels
from hyparflow.engine.stages.chained_stage import ChainedStage
from hyparflow.engine.stages.saved import Saved

__all__ = ["SegmentedStage"]


class SegmentedStage(ChainedStage):
    """See `ChainedStage`; its units are made with recompute="segments"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        count = len(self._units)
        size = max(1, round(math.sqrt(count)))
        self._segments = [range(n, min(n + size, count)) for n in range(0, count, size)]
        self._reads = {segment.start: self._read_by(segment) for segment in self._segments}

    def _read_by(self, segment: Sequence[int]) -> set[int]:
        """The numbers of the tensors that a segment takes from outside."""
        found: set[int] = set()
        made: set[int] = set()
        for place in segment:
            found |= set(self._numbers(place)) - made
            made |= set(self._units[place].outputs)
        return found

    def _pass(self, place: int, values: dict[int, Any], share: Any) -> Saved:
        begun = self._begun(place, values)
        saved = super()._pass(place, values, share)
        saved.outputs, saved.again = [], (begun, share)  # a backward makes them again
        return saved

    def _pass_loss(self, values: dict[int, Any], labels: Labels) -> Saved:
        begun = self._begun(len(self._units) - 1, values)
        saved = super()._pass_loss(values, labels)
        saved.again = (begun, labels)
        return saved

    def _begun(self, place: int, values: dict[int, Any]) -> dict[int, Any] | None:
        """What a segment takes that begins with this unit; None if none does."""
        reads = self._reads.get(place)
        return None if reads is None else {n: values[n] for n in reads}

    def _go_back(
        self,
        saved: Sequence[Saved],
        gradients: Any,
        seed: Any,
        way: Callable[..., list[Any]],
        start: int = 0,
    ) -> None:
        for segment in reversed(self._segments):
            some = saved[segment.start : segment.stop]
            if some:
                self._compute_again(segment.start, some)
                super()._go_back(some, gradients, seed, way, segment.start)

    def _compute_again(self, start: int, saved: Sequence[Saved]) -> None:
        """The forwards of a segment, which now keep what their backwards need."""
        values = dict(saved[0].again[0])
        for unit, of_unit in zip(self._units[start:], saved, strict=False):
            unit.stage.again(of_unit, self._taken(unit, values), of_unit.again[1])
            values.update(zip(unit.outputs, of_unit.outputs, strict=bool(of_unit.outputs)))
            of_unit.let_go_of_outputs()
