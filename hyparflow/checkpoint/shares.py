"""What each rank writes: every tensor once, by a rank that has it, about as many bytes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyparflow.engine.weights.sync import WeightSync
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.share_out import share_out

__all__ = ["Part", "parts_of_rank"]


@dataclass(frozen=True)
class Part:
    """A tensor, or rows of one, that a rank writes.

    Attributes:
        name: of the whole tensor.
        variable: that has the value.
        view: the shape of the whole: the tensor's own, or flat, where it is divided so.
        start: the first row, along the first axis of the view.
        rows: which of the variable's rows; None for all.
    """

    name: str
    variable: Any
    view: tuple[int, ...]
    start: int = 0
    rows: slice | None = None


def parts_of_rank(names: Mapping[str, Any], sync: WeightSync, grid: Grid, rank: int) -> list[Part]:
    """What a rank writes. Collective.

    Args:
        names: name -> variable, as `named_variables` gives them.
        sync: moves the variables.
        grid: the ranks.
        rank: this rank.
    """
    by_id = {id(variable): name for name, variable in names.items()}
    parts = []
    for owner, variables in sync.owned.by_rank().items():
        mine = [v for v in variables if id(v) in by_id]
        writers = _writers(mine, owner, sync, grid)
        for variable, writer in zip(mine, writers, strict=True):
            if writer == rank:
                name = by_id[id(variable)]
                parts.append(Part(name=name, variable=variable, view=tuple(variable.shape)))
    for slot in sync.holdings.divided:
        replica = grid.peer(rank)
        here = grid.partition(rank) == slot.partitions[0] and replica in slot.ranges.owners
        if here and id(slot.whole) in by_id:
            parts += [
                Part(
                    name=by_id[id(slot.whole)],
                    variable=slot.variable,
                    view=slot.ranges.view,
                    start=run.whole.start,
                    rows=run.own,
                )
                for run in slot.ranges.runs(replica)
            ]
    return parts


def _writers(variables: list[Any], owner: int, sync: WeightSync, grid: Grid) -> list[int]:
    """The ranks that write an owner's variables: those with its partition have them, too.

    What a model has and does not train may differ among replicas, and the first one's counts.
    """
    partition, first = grid.partition(owner), grid.peer(owner)
    slots = {id(slot) for slot in sync.slots}
    alike = [
        not sync.holdings.is_sharded if id(v) in slots else bool(v.trainable) for v in variables
    ]
    common = [bytes_of(v) for v, shared in zip(variables, alike, strict=True) if shared]
    dealt = iter(share_out(common, [[n] for n in range(len(common))], grid.num_peers))
    return [grid.peer_rank(next(dealt) if shared else first, partition) for shared in alike]
