"""What all ranks do until requests may join and leave again: the one record of it. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.serving.scheduling.sampling import Sampling

__all__ = ["EMPTY", "Piece", "Shape", "Window"]

EMPTY = -1  # a row of the new cache that no row of the old one becomes


@dataclass(frozen=True)
class Shape:
    """The size of the caches.

    Attributes:
        rows: how many there are.
        length: tokens of each.
    """

    rows: int
    length: int

    @property
    def size(self) -> int:
        """Tokens of all rows."""
        return self.rows * self.length


@dataclass(frozen=True)
class Piece:
    """A part of a prompt that goes into the cache.

    Attributes:
        row: of the cache.
        start: the position of its first token.
        tokens: the tokens.
        padded: how many are computed, so that few numbers occur.
    """

    row: int
    start: int
    tokens: tuple[int, ...]
    padded: int


@dataclass(frozen=True)
class Window:
    """A window: first the caches are rebuilt, then pieces of prompts go in, then tokens come.

    Attributes:
        shape: of the caches.
        sources: for each row the row of the old cache that it becomes, or `EMPTY`; None if the
            caches stay as they are.
        pieces: of prompts, at most one of each row.
        live: the rows that make tokens.
        numbers: of their requests.
        tokens: the last token of each live row, which is the first to be taken.
        positions: of these tokens.
        given: how many tokens each live row has made before.
        sampling: how each live row chooses.
        steps: how many tokens each live row makes.
        together: how many pieces of the same size are computed as one, large numbers first.
    """

    shape: Shape
    sources: tuple[int, ...] | None
    pieces: tuple[Piece, ...]
    live: tuple[int, ...]
    numbers: tuple[int, ...]
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    given: tuple[int, ...]
    sampling: tuple[Sampling, ...]
    steps: int
    together: tuple[int, ...] = ()

    @property
    def begins_anew(self) -> bool:
        """Whether the caches keep nothing of what they hold."""
        return self.sources is not None and all(source == EMPTY for source in self.sources)
