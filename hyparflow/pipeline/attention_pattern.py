"""Which keys a query attends to, by their positions. Pure integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hyparflow.pipeline.token_layout import Positions, TokenLayout

__all__ = ["AttentionPattern"]


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

    def pairs(self, layout: TokenLayout) -> int:
        """How many pairs of a query and a key are in the blocks of chunks that are computed."""
        chunks = [layout.chunk(number) for number in range(layout.num_chunks)]
        return sum(
            (queries[1] - queries[0]) * (keys[1] - keys[0])
            for queries, keys in itertools.product(chunks, repeat=2)
            if self.attends(queries, keys)
        )

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        return kind if self.window is None else f"{kind}, window of {self.window}"


def _distances(queries: Positions, keys: Positions) -> tuple[int, int]:
    return queries[0] - (keys[1] - 1), queries[1] - 1 - keys[0]
