"""Which replica updates which weights, where the optimizer's state is sharded over replicas.

Each weight that a partition trains is updated by one of the partition's replicas, which alone holds
its slots: the first stage of ZeRO (Rajbhandari et al., 2020). Gradients are summed to that replica,
and it gives the new weights to the others. Where whole weights would not come out even, the largest
are divided: each replica updates some of their rows, and holds these rows of their slots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from hyparflow.comm import abort
from hyparflow.engine.weights.dealt_out import Owner, dealt_out
from hyparflow.engine.weights.divided_slots import DividedSlot
from hyparflow.engine.weights.new_weights import NewWeights
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.rows import Rows
from hyparflow.engine.weights.weight_groups import WeightGroup
from hyparflow.model.keras_internals.weight_parts import (
    WeightPart,
    divides,
    make_part,
    may_be_divided,
    slots_by_list,
)
from hyparflow.pipeline.row_ranges import RowRanges

__all__ = ["Shards"]


class Shards:
    """One rank's share of the update. Making it is collective.

    Attributes:
        owners: for each weight that this rank trains, the replica that updates it, or the rows of
            it that each replica updates.
        replicas: id of a weight of the model -> the replica that updates it, in all partitions;
            without those that are divided.
        slots: of divided weights, in all partitions; known when `divide` was called.

    Args:
        model: the model.
        place: what this rank holds.
        groups: the weights that it trains, in groups; what is traced for one serves for others of
            its kind.
    """

    def __init__(self, model: Any, place: Ownership, groups: Sequence[WeightGroup]) -> None:
        self._weights = model.trainable_variables
        numbers = {id(v): number for number, v in enumerate(self._weights)}
        found = dealt_out(model, place, groups)
        everyone = place.world.all_gather_objects(
            {numbers[key]: owner for key, owner in found.items()}, "the owners of optimizer state"
        )
        dealt: dict[int, Owner] = {}
        for rank in place.grid.replica_ranks(0):  # all replicas take what the first one found
            dealt |= everyone[rank]
        owners = {id(self._weights[number]): owner for number, owner in dealt.items()}
        self._ranges = {key: x for key, x in owners.items() if isinstance(x, RowRanges)}
        self.replicas = {key: x for key, x in owners.items() if not isinstance(x, RowRanges)}
        self.owners = [owners[id(variable)] for variable in place.trained]
        self.slots: list[DividedSlot] = []
        self._place, self._replica = place, place.grid.peer(place.rank)
        self._rows: list[Rows] = []  # of weights

    def divide(self, optimizer: Any) -> dict[int, WeightPart]:
        """Make variables for this rank's rows of divided weights and their slots.

        Args:
            optimizer: the model's, built.

        Returns:
            By their positions among the weights that this rank trains.
        """
        place, mine = self._place, {}
        for position, (weight, ranges) in enumerate(zip(place.trained, self.owners, strict=True)):
            if isinstance(ranges, RowRanges) and self._replica in ranges.owners:
                shape = ranges.shape(self._replica)
                mine[position] = part = make_part(optimizer, weight, shape)
                self._rows.append(self._rows_of(part.rows, weight, weight))
        parts = {id(part.whole): part for part in mine.values()}
        for weight in self._weights:
            if id(weight) in self._ranges:
                rows = {} if id(weight) not in parts else parts[id(weight)].slots
                self.slots += [
                    DividedSlot(
                        slot,
                        self._ranges[id(weight)],
                        place.holders[id(weight)],
                        self._rows_of(rows[name], slot, weight) if rows else None,
                    )
                    for name, slot in slots_by_list(optimizer, weight).items()
                ]
        rows_of = {key: part.rows for key, part in parts.items()}
        self._new = NewWeights(place.peers, place.trained, self.owners, rows_of)
        return mine

    def require_divisible(self, optimizer: Any) -> None:
        """Check that divided weights may be divided with the present settings.

        Raises:
            ValueError: if a callback has changed what allowed it.
        """
        divided = [weight for weight in self._weights if id(weight) in self._ranges]
        odd = [weight.path for weight in divided if not may_be_divided(weight)]
        if not divided or (divides(optimizer) and not odd):
            return
        changed = f"of the weights {odd[:3]}" if odd else f"of {type(optimizer).__name__}"
        error = ValueError(
            "Weights that shard_optimizer=True has divided take no `clipnorm`, no constraint and "
            f"no regularizer but Keras's L1 and L2 from callbacks. Received: a change {changed}. "
            "Make it before `fit` and compile the model again, or leave shard_optimizer out."
        )
        # Settings of the optimizer are sent to all ranks; those of a variable may not be.
        raise error if odd else abort.mark_collective(error)

    def _rows_of(self, variable: Any, whole: Any, weight: Any) -> Rows:
        return Rows(variable, whole, self._ranges[id(weight)], self._replica)

    @contextlib.contextmanager
    def rows(self) -> Iterator[None]:
        """While open, this rank's rows of divided weights are in their variables."""
        for rows in self._rows:
            rows.take()
        try:
            yield
        finally:
            for rows in self._rows:
                rows.release()

    def groups(self, groups: Sequence[WeightGroup]) -> list[WeightGroup]:
        """What this rank updates of each group.

        Groups of one kind stay of one kind where it updates the same places of both.
        """
        kinds: dict[Any, int] = {}
        mine = []
        for group in groups:
            owners = [self.owners[position] for position in group.positions]
            places = tuple(n for n, owner in enumerate(owners) if self._updates(owner))
            if places:
                shapes = tuple(self._shape(owners[n]) for n in places)
                kind = kinds.setdefault((group.kind, places, shapes), len(kinds))
                mine.append(WeightGroup(tuple(group.positions[p] for p in places), kind))
        return mine

    def _updates(self, owner: Owner) -> bool:
        """Whether this rank updates a weight, or rows of it."""
        if isinstance(owner, RowRanges):
            return self._replica in owner.owners
        return owner == self._replica

    def _shape(self, owner: Owner) -> tuple[int, ...] | None:
        """The shape of this rank's rows of a divided weight."""
        return owner.shape(self._replica) if isinstance(owner, RowRanges) else None

    def share(self) -> None:
        """Give the weights that this rank has updated to the other replicas. Collective."""
        self._new.share()
