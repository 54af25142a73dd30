"""The optimizer's slots of divided weights: each rank has the rows that it updates.

While ranks train, the slot itself, which callbacks and files know, has no memory on any rank. It
gets its value when someone asks for it, and at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag
from hyparflow.engine.weights.pieces import value_of
from hyparflow.engine.weights.rows import Rows
from hyparflow.model.keras_internals.deferred_variables import overwrite
from hyparflow.model.variable_sizes import numpy_type
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.row_ranges import PlacedRows, RowRanges

__all__ = ["DividedSlot", "DividedSlots"]


@dataclass(frozen=True)
class DividedSlot:
    """A slot of a divided weight.

    Attributes:
        whole: the optimizer's variable.
        ranges: which rows of it each replica has.
        partitions: those that hold the weight.
        rows: this rank's; None if it has none.
    """

    whole: Any
    ranges: RowRanges | PlacedRows
    partitions: tuple[int, ...]
    rows: Rows | None

    @property
    def variable(self) -> Any:
        """The variable for this rank's rows; None if it has none."""
        return None if self.rows is None else self.rows.variable


class DividedSlots:
    """Moves slots of divided weights between ranks.

    Args:
        slots: of all partitions, in the same order on all ranks.
        grid: the ranks.
        world: all of them.
    """

    def __init__(self, slots: Sequence[DividedSlot], grid: Grid, world: Communicator) -> None:
        self._slots = {id(slot.whole): slot for slot in slots}
        self._grid, self._world = grid, world

    def __bool__(self) -> bool:
        return bool(self._slots)

    def __iter__(self) -> Iterator[DividedSlot]:
        return iter(self._slots.values())

    def __contains__(self, variable: Any) -> bool:
        return id(variable) in self._slots

    def rows(self, variable: Any) -> Rows | None:
        """This rank's rows of a variable; None if it has none."""
        slot = self._slots.get(id(variable))
        return None if slot is None else slot.rows

    def take(self, variable: Any) -> None:
        """Let this rank's rows be those of the slot, which has a value or an initializer."""
        rows = self.rows(variable)
        if rows is not None:
            rows.take()

    def write(self, variable: Any, value: np.ndarray) -> None:
        """Let this rank's rows be those of `value`."""
        rows = self.rows(variable)
        if rows is not None:
            overwrite(rows.variable, rows.of(np.asarray(value)).copy())

    def hand_out(self, variable: Any) -> None:
        """Give the leader's value to the ranks that have rows of it. Collective."""
        slot = self._slots[id(variable)]
        mine = self._world.rank
        for replica, rank in self._owners(slot, slot.partitions):
            if mine == LEADER == rank:
                self.take(variable)
            elif mine == LEADER:
                viewed = value_of(variable).reshape(slot.ranges.view)
                for run in slot.ranges.runs(replica):
                    requests = self._world.send(viewed[run.whole], rank, Tag.WEIGHTS)
                    self._world.wait_all(requests, f"rank {rank} to take rows of a slot")
            elif mine == rank:
                part = np.empty(slot.ranges.shape(replica), numpy_type(variable.dtype))
                for run in slot.ranges.runs(replica):
                    self._receive(part[run.own], LEADER)
                overwrite(slot.variable, part)

    def bring(self, variable: Any) -> None:
        """Give the leader the whole value. Collective."""
        slot = self._slots[id(variable)]
        owners = self._owners(slot, slot.partitions[:1])
        if self._world.rank == LEADER:
            value = _room(variable)
            viewed = value.reshape(slot.ranges.view)
            for replica, rank in owners:
                own = value_of(slot.variable) if rank == LEADER else None
                for run in slot.ranges.runs(replica):
                    if own is None:
                        self._receive(viewed[run.whole], rank)
                    else:
                        viewed[run.whole] = own[run.own]
            overwrite(variable, value)
            return
        for replica, rank in owners:
            for run in slot.ranges.runs(replica) if rank == self._world.rank else ():
                part = value_of(slot.variable)[run.own]
                requests = self._world.send(part, LEADER, Tag.WEIGHTS)
                self._world.wait_all(requests, "rank 0 to take rows of a slot")

    def gather(self) -> None:
        """Give all ranks the whole values. Collective."""
        for slot in self._slots.values():
            value = _room(slot.whole)
            viewed = value.reshape(slot.ranges.view)
            for replica, rank in self._owners(slot, slot.partitions[:1]):
                own = value_of(slot.variable) if rank == self._world.rank else None
                for run in slot.ranges.runs(replica):
                    if own is not None:
                        viewed[run.whole] = own[run.own]
                    part = viewed[run.whole]
                    self._world.broadcast(part, rank, f"rows of a slot from rank {rank}")
            overwrite(slot.whole, value)

    def bring_all(self) -> None:
        """Give the leader all whole values. Collective."""
        for slot in self._slots.values():
            self.bring(slot.whole)

    def release(self) -> None:
        """Give back the memory of this rank's rows, when all ranks have the whole."""
        for slot in self._slots.values():
            if slot.rows is not None:
                slot.rows.release()

    def _owners(self, slot: DividedSlot, partitions: Sequence[int]) -> list[tuple[int, int]]:
        """The replicas that have rows, and their ranks, in some partitions."""
        return [(r, self._grid.peer_rank(r, p)) for p in partitions for r in slot.ranges.owners]

    def _receive(self, part: np.ndarray, peer: int) -> None:
        requests = self._world.receive(part, peer, Tag.WEIGHTS)
        self._world.wait_all(requests, f"rows of a slot from rank {peer}")


def _room(variable: Any) -> np.ndarray:
    return np.empty(tuple(variable.shape), numpy_type(variable.dtype))
