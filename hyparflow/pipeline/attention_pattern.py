"""Which keys a query attends to, by their positions. Pure integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hyparflow.pipeline.token_layout import Positions, TokenLayout

__all__ = ["AttentionPattern"]

_SHORTEST_STRIP, _MOST_STRIPS = 256, 4  # queries; shorter strips compute less, and slower


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys a query attends to, by the distance between their positions.

    Args:
        causal: whether keys after the query are left out.
        window: keys at this distance, and farther ones, are left out; None for no such bound.
    """

    causal: bool
    window: int | None = None

    @property
    def distances(self) -> tuple[int | None, int | None]:
        """The least and largest distance of a key, in positions before the query."""
        last = None if self.window is None else self.window - 1
        first = 0 if self.causal else None if last is None else -last
        return first, last

    def attends(self, queries: Positions, keys: Positions) -> bool:
        """Whether any of these queries attends to any of these keys."""
        nearest, farthest = _distances(queries, keys)
        first, last = self.distances
        return (first is None or farthest >= first) and (last is None or nearest <= last)

    def attends_to_all(self, queries: Positions, keys: Positions) -> bool:
        """Whether each of these queries attends to each of these keys."""
        nearest, farthest = _distances(queries, keys)
        first, last = self.distances
        return (first is None or nearest >= first) and (last is None or farthest <= last)

    def strips(self, queries: Positions, keys: Positions) -> list[tuple[Positions, Positions]]:
        """Parts of a block: some queries, and the keys that any of them attends to.

        A block that is attended to as a whole is one strip. Strips are not so short that computing
        them one by one takes longer; each has a key at least, whether attended to or not.
        """
        count = 1
        if not self.attends_to_all(queries, keys):
            count = min(_MOST_STRIPS, max(1, (queries[1] - queries[0]) // _SHORTEST_STRIP))
        edges = [queries[0] + (queries[1] - queries[0]) * n // count for n in range(count + 1)]
        return [(each, self._keys_of(each, keys)) for each in itertools.pairwise(edges)]

    def _keys_of(self, queries: Positions, keys: Positions) -> Positions:
        """Those of the keys that one of the queries attends to; one key, if there are none."""
        nearest, farthest = self.distances
        start = keys[0] if farthest is None else max(keys[0], queries[0] - farthest)
        stop = keys[1] if nearest is None else min(keys[1], queries[1] - nearest)
        start = min(start, keys[1] - 1)
        return start, max(start + 1, stop)

    def pairs(self, layout: TokenLayout) -> int:
        """How many pairs of a query and a key are computed, in the strips of all blocks."""
        chunks = [layout.chunk(number) for number in range(layout.num_chunks)]
        return sum(
            (some[1] - some[0]) * (others[1] - others[0])
            for queries, keys in itertools.product(chunks, repeat=2)
            if self.attends(queries, keys)
            for some, others in self.strips(queries, keys)
        )

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        return kind if self.window is None else f"{kind}, window of {self.window}"


def _distances(queries: Positions, keys: Positions) -> tuple[int, int]:
    return queries[0] - (keys[1] - 1), queries[1] - 1 - keys[0]
