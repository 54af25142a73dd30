"""How many requests compute together, and how large their caches are. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.window import Shape

__all__ = ["Limits"]

_SHORTEST_PIECE = 16  # tokens: fewer take as long
_MANY_ROWS = 12  # that take much longer than half as many


@dataclass(frozen=True)
class Limits:
    """What a scheduler may take.

    Attributes:
        max_batch: rows at the same time.
        max_length: tokens of a request, with those that come.
        window: iterations of a window, at most.
        piece: tokens of prompts that a window takes in, at most: the longest that others wait.
        pieces_while_idle: how many times as many a window takes in if no request makes tokens, and
            would wait; of each prompt no more than `piece`.
        cache: tokens for which there is memory, of all rows.
        shortest: the shortest length of a cache.
        fewest: the fewest rows of a cache.
        factor: of each size to the next larger one. Each size is compiled.
        multiple: of which numbers of rows are multiples.
        together: how many pieces of prompts of the same size are computed as one, large numbers
            first: it takes less time than one by one, and is compiled besides.
    """

    max_batch: int
    max_length: int
    window: int = 8
    piece: int = 256
    pieces_while_idle: int = 1
    cache: int | None = None
    shortest: int = 64
    fewest: int = 1
    factor: int = 2
    multiple: int = 1
    together: tuple[int, ...] = ()

    def require_possible(self, request: Request) -> None:
        """Check that a request can run once nobody else does.

        Raises:
            ValueError: if it cannot.
        """
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError(
                "A request must have a prompt of a token or more, and ask for one or more. "
                f"Received: {len(request.prompt)} tokens, max_new_tokens={request.max_new_tokens}."
            )
        alone = self.shape(1, request.most_tokens)
        if request.most_tokens > self.max_length or not self.fits(alone):
            most = self.max_length if self.cache is None else min(self.max_length, self.cache)
            raise ValueError(
                f"A request may have {most} tokens, those of its prompt and those that come. "
                f"Received: {len(request.prompt)} tokens and max_new_tokens="
                f"{request.max_new_tokens}. Ask for fewer, or serve with a larger `max_length`."
            )

    def rows(self, count: int) -> int:
        """The number of rows of a cache for so many requests."""
        size = self._size(self.fewest, count)
        between = 3 * size // 4
        if self.factor == 2 and between >= max(count, _MANY_ROWS):
            size = between  # sizes twice as large as the last would compute many rows in vain
        wanted = max(self.fewest, min(self.max_batch, size))
        return -(-wanted // self.multiple) * self.multiple

    def length(self, tokens: int) -> int:
        """The length of a cache for so many tokens."""
        return min(self.max_length, self._size(self.shortest, tokens))

    def piece_sizes(self, longest: int) -> list[int]:
        """The numbers of tokens that are computed for pieces up to a length.

        Where few sizes are compiled they lie farther apart.
        """
        sizes = [_SHORTEST_PIECE]
        while sizes[-1] < longest:
            sizes.append(self.factor * sizes[-1])
        return sizes

    def _size(self, smallest: int, wanted: int) -> int:
        while smallest < wanted:
            smallest *= self.factor
        return smallest

    @property
    def shapes(self) -> list[Shape]:
        """All sizes that caches may have, small ones first."""
        rows = sorted({self.rows(count) for count in range(1, self.max_batch + 1)})
        lengths = sorted({self.length(tokens) for tokens in range(1, self.max_length + 1)})
        found = [Shape(count, length) for count in rows for length in lengths]
        return [shape for shape in found if self.fits(shape)]

    def shape(self, rows: int, tokens: int) -> Shape:
        """The size of caches for so many requests, the longest of so many tokens."""
        return Shape(self.rows(rows), self.length(tokens))

    def fits(self, shape: Shape) -> bool:
        """Whether there is memory for caches of this size."""
        return self.cache is None or shape.size <= self.cache
