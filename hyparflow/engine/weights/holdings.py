"""Which variables a rank needs; it has memory for these alone while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hyparflow.engine.weights.divided_slots import DividedSlots
from hyparflow.model.keras_internals.deferred_variables import is_absent, release, source_of
from hyparflow.model.keras_internals.optimizer import weights_of_slots, writes_at_end
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.grid import Grid

__all__ = ["Elsewhere", "Holdings", "bytes_here", "is_elsewhere"]


class Holdings:
    """The variables that this rank's partition needs, among those of model and optimizer.

    A variable of which it is not known who needs it, is needed by all.

    Attributes:
        parts: whether ranks hold parts, and not everything.
        is_sharded: whether replicas update different weights, or rows.
        divided: the slots of which each replica needs some rows.
        fetch: brings in the value of a variable that other ranks hold; None where nothing can.
        busy: whether ranks do something together, so that none can be asked.

    Args:
        grid: the ranks.
        rank: this rank.
        holders: id of a variable of the model -> the partitions that use it.
        optimizer: the model's, built, or None.
        replicas: id of a weight -> the one replica that needs its slots; empty if all do.
        divided: the slots of which each replica needs some rows, and none the whole.
    """

    def __init__(
        self,
        grid: Grid,
        rank: int,
        holders: dict[int, tuple[int, ...]],
        optimizer: Any,
        replicas: Mapping[int, int] | None,
        divided: DividedSlots,
    ) -> None:
        self._grid, self._rank = grid, rank
        self._partition, self._replica = grid.partition(rank), grid.peer(rank)
        # Averages of weights are written by all ranks to all weights.
        writes_all = optimizer is not None and writes_at_end(optimizer)
        parted = grid.num_partitions > 1
        self.divided = divided
        self.is_sharded, of = bool(replicas) or bool(divided), replicas or {}
        self.parts = (parted or self.is_sharded) and not writes_all
        slots = {} if optimizer is None else weights_of_slots(optimizer)
        self._holders = holders | {
            slot: holders[id(weight)] for slot, weight in slots.items() if id(weight) in holders
        }
        self._replicas = {s: of[id(weight)] for s, weight in slots.items() if id(weight) in of}
        self.fetch: Callable[[Any], Any] | None = None
        self.busy = False

    def holders(self, variable: Any) -> tuple[int, ...] | None:
        """The partitions that need a variable; None if all do."""
        return self._holders.get(id(variable)) if self.parts else None

    def replica(self, variable: Any) -> int | None:
        """The one replica of these partitions that needs a variable; None if all do."""
        return self._replicas.get(id(variable)) if self.parts else None

    def owner(self, variable: Any) -> int:
        """The first rank that uses a variable."""
        partition = self._holders.get(id(variable), (0,))[0]
        return self._grid.peer_rank(self.replica(variable) or 0, partition)

    def needs(self, variable: Any) -> bool:
        """Whether this rank needs a variable, whole."""
        if variable in self.divided:
            return False
        who = self.holders(variable)
        replica = self.replica(variable)
        return (who is None or self._partition in who) and replica in (None, self._replica)

    def drop(self, variables: Sequence[Any]) -> None:
        """Give back the memory of those that this rank does not need."""
        for variable in variables:
            if not self.needs(variable) and not is_elsewhere(variable):
                release(variable, Elsewhere(variable, self))

    def ask(self, variable: Any) -> Any:
        """The value of a variable that other ranks hold.

        Raises:
            RuntimeError: if they cannot be asked.
        """
        if self.fetch is None or self.busy:
            raise RuntimeError(
                "A rank has memory only for the weights of its own partition, and its share of the "
                "optimizer's state, while it trains and after `gather=False`. Received: a read of "
                f"'{getattr(variable, 'path', variable.name)}' ({bytes_of(variable)} bytes), which "
                f"{self._grid.describe(self._rank)} does not hold. Leave out gather=False, or save "
                "with `hyparflow.parallelize(...).save(path)`, which all ranks call. A loss or a "
                "layer that reads weights of another partition's layers needs strategy='data'."
            )
        return self.fetch(variable)


class Elsewhere:
    """Where the value of a variable comes from that other ranks hold.

    Args:
        variable: the variable.
        holdings: of this rank.
    """

    def __init__(self, variable: Any, holdings: Holdings) -> None:
        self._variable, self._holdings = variable, holdings

    def __call__(self) -> Any:
        """Ask for it."""
        return self._holdings.ask(self._variable)

    @property
    def rows(self) -> Any:
        """This rank's rows of it; None if it has none."""
        return self._holdings.divided.rows(self._variable)


def is_elsewhere(variable: Any) -> bool:
    """Whether other ranks hold the value of a variable, and this one does not."""
    return is_absent(variable) and isinstance(source_of(variable), Elsewhere)


def bytes_here(variable: Any) -> int:
    """The memory that this rank has for a variable, or for rows of it."""
    if not is_absent(variable):
        return bytes_of(variable)
    source = source_of(variable)
    rows = source.rows if isinstance(source, Elsewhere) else None
    return 0 if rows is None else bytes_of(rows.variable)
