"""Which chunks keep what their backward needs, where all others compute their forward again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["KeptForwards"]

# (micro-batch, section, chunk)
_Place = tuple[int, int, int]


class KeptForwards:
    """Tensors that forwards of sections keep in memory, up to a number of bytes.

    A short sequence need not be computed twice, and a long one takes no more memory for it: the
    more there would be to keep, the less is kept beyond that number, and nothing of twice as much.
    """

    def __init__(self) -> None:
        self._sizes: dict[_Place, int] = {}
        self._tensors: dict[_Place, list[Any]] = {}

    def clear(self) -> None:
        """Keep nothing."""
        self._sizes.clear()
        self._tensors.clear()

    def choose(self, sizes: dict[_Place, int], most: int) -> None:
        """Choose the places of a micro-batch that keep their tensors.

        The last ones come first: their backward does, and makes room for what that needs.

        Args:
            sizes: bytes that each place would keep, in the order of the forward.
            most: bytes that may be kept at the same time, with those of other micro-batches.
        """
        room = min(most, 2 * most - sum(sizes.values())) - sum(self._sizes.values())
        for place in reversed(sizes):
            if sizes[place] > room:
                return
            self._sizes[place] = sizes[place]
            room -= sizes[place]

    def keeps(self, place: _Place) -> bool:
        """Whether a place was chosen."""
        return place in self._sizes

    def put(self, place: _Place, tensors: Collection[Any]) -> None:
        """Keep the tensors of a place that was chosen."""
        self._tensors[place] = list(tensors)

    def take(self, place: _Place) -> list[Any] | None:
        """The tensors of a place, which then keeps none; None if it was not chosen."""
        self._sizes.pop(place, None)
        return self._tensors.pop(place, None)
