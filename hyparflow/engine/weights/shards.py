"""Which replica updates which weights, where the optimizer's state is sharded over replicas.

Each weight that a partition trains is updated by one of the partition's replicas, which alone holds
its slots: the first stage of ZeRO (Rajbhandari et al., 2020). Gradients are summed to that replica,
and it gives the new weights to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.engine.weights.new_weights import NewWeights
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.weight_groups import WeightGroup
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.share_out import share_out, share_out_common

__all__ = ["Shards"]


class Shards:
    """One rank's share of the update. Making it is collective.

    Attributes:
        owners: for each weight that this rank trains, the replica that updates it.
        replicas: id of a weight of the model -> the replica that updates it, in all partitions.

    Args:
        model: the model.
        place: what this rank holds.
        groups: the weights that it trains, in groups; what is traced for one serves for others of
            its kind.
    """

    def __init__(self, model: Any, place: Ownership, groups: Sequence[WeightGroup]) -> None:
        weights = model.trainable_variables
        numbers = {id(v): number for number, v in enumerate(weights)}
        found = _shared_out(weights, place, groups)
        what = "the owners of optimizer state"
        everyone = place.world.all_gather_objects(
            {numbers[key]: r for key, r in found.items()}, what
        )
        dealt: dict[int, int] = {}
        for rank in place.grid.replica_ranks(0):  # all replicas take what the first one found
            dealt |= everyone[rank]
        self.replicas = {id(weights[number]): replica for number, replica in dealt.items()}
        self.owners = [self.replicas[id(variable)] for variable in place.trained]
        self._replica = place.grid.replica(place.rank)
        self._new = NewWeights(place.peers, place.trained, self.owners)

    def groups(self, groups: Sequence[WeightGroup]) -> list[WeightGroup]:
        """What this rank updates of each group.

        Groups of one kind stay of one kind where it updates the same places of both.
        """
        kinds: dict[tuple[int, tuple[int, ...]], int] = {}
        mine = []
        for group in groups:
            places = tuple(
                place
                for place, position in enumerate(group.positions)
                if self.owners[position] == self._replica
            )
            if places:
                kind = kinds.setdefault((group.kind, places), len(kinds))
                mine.append(WeightGroup(tuple(group.positions[p] for p in places), kind))
        return mine

    def share(self) -> None:
        """Give the weights that this rank has updated to the other replicas. Collective."""
        self._new.share()


def _shared_out(
    weights: Sequence[Any], place: Ownership, groups: Sequence[WeightGroup]
) -> dict[int, int]:
    """The replica of each weight of this rank's partition, by id.

    A weight that several partitions hold has its owners in one replica: these add up its gradients.
    """
    grid, mine = place.grid, place.partition
    common = [v for v in weights if len(place.holders[id(v)]) > 1]
    owners, loads = share_out_common(
        [bytes_of(v) for v in common],
        [place.holders[id(v)] for v in common],
        grid.num_partitions,
        grid.num_replicas,
    )
    found = {id(v): owner for v, owner in zip(common, owners, strict=True)}
    alone = [v for v in place.trained if id(v) not in found]
    order = {id(v): position for position, v in enumerate(alone)}
    dealt = share_out(
        [bytes_of(v) for v in alone],
        _together(place.trained, groups, order),
        grid.num_replicas,
        loads[mine],
    )
    found |= {id(v): owner for v, owner in zip(alone, dealt, strict=True)}
    return {key: owner for key, owner in found.items() if mine in place.holders[key]}


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
