"""Which positions of a sequence a shard computes, and in which chunks. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Positions", "TokenLayout"]

Positions = tuple[int, int]  # from, to


@dataclass(frozen=True)
class TokenLayout:
    """The positions of a sequence, in chunks that are each spread over all shards.

    With u chunks and P shards there are u P pieces in order; chunk i has the pieces from i P on,
    one for each shard. So what attention gathers from all shards for a chunk is in order, and each
    shard has an equal part of early and late positions. (FPDT, section 4.2, figure 6.) Where the
    length does not divide, the first pieces are one position longer.

    Args:
        length: positions of the whole sequence, S.
        num_chunks: u.
        num_shards: P.

    Raises:
        ValueError: if there are fewer positions than pieces.
    """

    length: int
    num_chunks: int = 1
    num_shards: int = 1

    def __post_init__(self) -> None:
        pieces = self.num_chunks * self.num_shards
        if self.length < pieces:
            raise ValueError(
                "A sequence must have a position for each chunk of each shard. Received: a "
                f"sequence of {self.length} positions for {self.num_chunks} chunks x "
                f"{self.num_shards} shards. Pass fewer `num_sequence_chunks` or "
                "`num_sequence_shards`, or longer sequences."
            )

    def _edge(self, piece: int) -> int:
        size, longer = divmod(self.length, self.num_chunks * self.num_shards)
        return piece * size + min(piece, longer)

    def piece(self, chunk: int, shard: int) -> Positions:
        """The positions of a chunk that a shard has."""
        number = chunk * self.num_shards + shard
        return self._edge(number), self._edge(number + 1)

    def chunk(self, chunk: int) -> Positions:
        """The positions of a chunk, those of all shards."""
        first = chunk * self.num_shards
        return self._edge(first), self._edge(first + self.num_shards)

    def pieces(self, shard: int) -> list[Positions]:
        """The positions that a shard has, chunk by chunk."""
        return [self.piece(chunk, shard) for chunk in range(self.num_chunks)]

    def lengths(self, chunk: int) -> list[int]:
        """How many positions of a chunk each shard has."""
        pieces = (self.piece(chunk, shard) for shard in range(self.num_shards))
        return [stop - start for start, stop in pieces]

    def shard_length(self, shard: int) -> int:
        """How many positions a shard has in all."""
        return sum(stop - start for start, stop in self.pieces(shard))
