"""Which rank has the value of each variable: where it goes to others from, and to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.weights.holdings import Holdings
from hyparflow.model.keras_internals.deferred_variables import raw_variable
from hyparflow.pipeline.grid import Grid

__all__ = ["OwnedVariables"]


class OwnedVariables:
    """The owners of the variables of a model and its optimizer.

    Args:
        weights: of the model, with the states of its random generators.
        slots: the variables of its optimizer.
        partitions: id of a weight -> the partition that owns it.
        holdings: which variables this rank needs.
        grid: the ranks.
        world, replica: all of them; those of this replica.
        touched: the optimizer's variables (TensorFlow's) that this rank's updates use.
    """

    def __init__(
        self,
        weights: Sequence[Any],
        slots: Sequence[Any],
        partitions: dict[int, int],
        holdings: Holdings,
        grid: Grid,
        world: Communicator,
        replica: Communicator,
        touched: Callable[[], Sequence[Any]],
    ) -> None:
        self._weights, self._slots = weights, slots
        self._partitions, self._holdings, self._grid = partitions, holdings, grid
        self._world, self._replica, self._touched = world, replica, touched

    def by_rank(self) -> dict[int, list[Any]]:
        """The variables that each rank owns, but for those that are divided. Collective."""
        divides = self._holdings.is_sharded
        ranks = range(self._world.size) if divides else self._grid.replica_ranks(0)
        owned: dict[int, list[Any]] = {rank: [] for rank in ranks}
        for variable in self._weights:
            owner = self._grid.rank(0, self._partitions.get(id(variable), 0))
            owned[owner] += [] if variable in self._holdings.divided else [variable]
        for slot, owner in zip(self._slots, self._owners_of_slots(), strict=True):
            owned[owner] += [] if slot in self._holdings.divided else [slot]
        return owned

    def _owners_of_slots(self) -> list[int]:
        """The rank that updates each optimizer variable: the first that uses it."""
        used = {id(variable) for variable in self._touched()}
        mine = [i for i, slot in enumerate(self._slots) if id(raw_variable(slot)) in used]
        divides = self._holdings.is_sharded
        ranks = self._world if divides else self._replica
        everyone = ranks.all_gather_objects(mine, "the owners of optimizer state")
        owners = [self._holdings.owner(slot) for slot in self._slots]
        for rank in reversed(range(len(everyone))):  # a rank of the first replica, or of all
            for index in everyone[rank]:
                owners[index] = rank if divides else self._grid.rank(0, rank)
        return owners
