"""Which experts each replica holds and updates, where replicas share out the experts of layers.

Each replica has the rows of its experts in variables of its own, from the start of a call to its
end; the layer's own variables have no memory meanwhile. All tokens of a batch that chose an expert
come to the one replica that has it, so its gradients are complete there.
"""

from __future__ import annotations

from typing import Any

from hyparflow.comm import abort
from hyparflow.engine.experts.placed_experts import Placed
from hyparflow.engine.weights.divided_slots import DividedSlot
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.rows import Rows
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.weight_parts import (
    WeightPart,
    divides,
    make_part,
    make_rows,
    may_be_divided,
    slots_by_list,
    weights_with_slots,
)
from hyparflow.pipeline.row_ranges import PlacedRows

__all__ = ["ExpertShards"]


class ExpertShards:
    """One rank's experts.

    Attributes:
        layers: that have experts.
        rank_of: id of a layer -> for each of its experts, the replica that has it.
        slots: their weights, and those weights' slots, in all partitions.

    Args:
        model: the model.
        place: what this rank holds.
        placed: which replica has which expert.
    """

    def __init__(self, model: Any, place: Ownership, placed: Placed) -> None:
        self._place, self._peer = place, place.grid.peer(place.rank)
        self.layers = expert_layers(all_layers(model))
        self.slots: list[DividedSlot] = []
        self.rank_of: dict[int, list[int]] = {}
        self._ranges: dict[int, PlacedRows] = {}
        self._rows: dict[int, Rows] = {}
        for one, ranks in zip(self.layers, placed, strict=True):
            self.rank_of[id(one.layer)] = list(ranks)
            for weight in one.weights:
                self._divide(weight, ranks)

    def _divide(self, weight: Any, replicas: tuple[int, ...]) -> None:
        ranges = PlacedRows(tuple(weight.shape), replicas)
        mine = make_rows(weight, ranges.shape(self._peer))
        self._ranges[id(weight)] = ranges
        self._rows[id(weight)] = Rows(mine, weight, ranges, self._peer)
        self._note(weight, weight, self._rows[id(weight)])

    def _note(self, whole: Any, weight: Any, rows: Rows) -> None:
        holders = self._place.holders.get(id(weight), (0,))
        here = rows if self._place.partition in holders else None
        self.slots.append(DividedSlot(whole, self._ranges[id(weight)], holders, here))

    def local(self, variable: Any) -> Any:
        """What this rank has of a variable: its experts' rows, or the variable itself."""
        rows = self._rows.get(id(variable))
        return variable if rows is None else rows.variable

    def __contains__(self, variable: Any) -> bool:
        return id(variable) in self._rows

    def divide(self, optimizer: Any) -> dict[int, WeightPart]:
        """Make variables for the slots of this rank's experts.

        Args:
            optimizer: the model's, built.

        Returns:
            By the positions of their weights among those that this rank trains.
        """
        trained = {id(weight): position for position, weight in enumerate(self._place.trained)}
        known = {id(weight) for weight in weights_with_slots(optimizer)}
        parts: dict[int, WeightPart] = {}
        for one in self.layers:
            for weight in one.weights:
                if id(weight) not in known:
                    continue
                shape = self._ranges[id(weight)].shape(self._peer)
                part = make_part(optimizer, weight, shape, self.local(weight))
                if id(weight) in trained:
                    parts[trained[id(weight)]] = part
                for name, slot in slots_by_list(optimizer, weight).items():
                    ranges = self._ranges[id(weight)]
                    self._note(slot, weight, Rows(part.slots[name], slot, ranges, self._peer))
        return parts

    def require_divisible(self, optimizer: Any) -> None:
        """Check that experts may be shared out with the present settings.

        Raises:
            ValueError: if they may not.
        """
        weights = [weight for one in self.layers for weight in one.weights if weight.trainable]
        odd = [w.path for w in weights if not may_be_divided(w) or w.regularizer is not None]
        if not weights or (divides(optimizer) and not odd):
            return
        settings = [name for name in ("clipnorm", "use_ema") if getattr(optimizer, name, None)]
        with_these = f" with {' and '.join(settings)}" if settings else ""
        received = f"the weights {odd[:3]}" if odd else f"{type(optimizer).__name__}{with_these}"
        error = ValueError(
            "Experts that expert_parallel=True shares out are updated by Keras's optimizers that "
            "treat each number alone, without `clipnorm` or averages of weights, and have no "
            "constraint and no regularizer. "
            f"Received: {received}. Use global_clipnorm, or leave expert_parallel out."
        )
        raise abort.mark_collective(error)
