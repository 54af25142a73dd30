"""What all ranks are told at the end of an iteration: new tokens, and their keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.experts.byte_fields import joined_bytes, split_bytes

__all__ = ["TO_ALL", "RowGather"]

TO_ALL = "new tokens, keys and values on their way to all ranks"

# The numbers of some rows, and what belongs to these.
RowArrays = tuple[np.ndarray, Sequence[np.ndarray]]


class RowGather:
    """Gathers rows, each of which one rank has.

    Args:
        ranks: these ranks.
        count: how many rows there are.
    """

    def __init__(self, ranks: Communicator, count: int) -> None:
        self._ranks, self._count = ranks, count

    def gathered(self, groups: Sequence[RowArrays]) -> list[np.ndarray]:
        """All rows of all groups. Collective.

        Args:
            groups: the numbers, of int32, of the rows that this rank has of each; and arrays (n,
                ...) of what belongs to them.

        Returns:
            For each array of each group, one in which each row has its place, (count, ...).
        """
        flat = [array for numbers, arrays in groups for array in (numbers, *arrays)]
        messages = self._ranks.all_gather_unsized(joined_bytes(flat), TO_ALL)
        made = [
            np.empty((self._count, *array.shape[1:]), array.dtype)
            for _, arrays in groups
            for array in arrays
        ]
        for message in messages:
            left = split_bytes(message, [array[:0] for array in flat])
            places = iter(made)
            for _, arrays in groups:
                numbers = left.pop(0)
                for _ in arrays:
                    next(places)[numbers] = left.pop(0)
        return made
