"""How many requests compute together, and how large their caches are. Pure integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyparflow.serving.window import Shape

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a scheduler may take.

    Attributes:
        max_batch: rows at the same time.
        max_length: tokens of a request, with those that come.
        window: iterations of a window, at most.
        piece: tokens of prompts that a window takes in, at most: the longest that others wait.
        cache: tokens for which there is memory, of all rows.
        shortest: the shortest length of a cache; each further one is twice as long.
        fewest: rows of a cache; XLA's products of matrices take less time than those of vectors.
    """

    max_batch: int
    max_length: int
    window: int = 8
    piece: int = 256
    cache: int | None = None
    shortest: int = 64
    fewest: int = 1

    def rows(self, count: int) -> int:
        """The number of rows of a cache for so many requests."""
        return max(self.fewest, min(self.max_batch, 1 << max(0, count - 1).bit_length()))

    def length(self, tokens: int) -> int:
        """The length of a cache for so many tokens."""
        doublings = max(0, math.ceil(math.log2(max(1, tokens) / self.shortest)))
        return min(self.max_length, self.shortest << doublings)

    def shape(self, rows: int, tokens: int) -> Shape:
        """The size of caches for so many requests, the longest of so many tokens."""
        return Shape(self.rows(rows), self.length(tokens))

    def fits(self, shape: Shape) -> bool:
        """Whether there is memory for caches of this size."""
        return self.cache is None or shape.size <= self.cache
