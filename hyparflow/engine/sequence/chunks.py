"""In how many chunks a sequence fits in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyparflow.engine.compiled.section_sizes import SectionSizes

__all__ = ["SHORTEST", "ChunkCosts", "HeadSizes", "least_chunks", "tile_of"]

SHORTEST = 512  # positions of a chunk: calls of shorter ones take longer than what they compute
_TILE = 1 << 25  # bytes that the largest tensor of the last section may have
_BLOCKS = 4  # tensors of the size of a block of scores that exist at the same time


@dataclass(frozen=True)
class HeadSizes:
    """What a shard has of an attention layer.

    Attributes:
        heads: of queries.
        key_heads: of keys and values.
        key_size, value_size: numbers of a head.
        number_size: bytes of a number; sums have four at least.
    """

    heads: int
    key_heads: int
    key_size: int
    value_size: int
    number_size: int

    @property
    def of_token(self) -> int:
        """Bytes that a backward of a block takes and makes for a position of a row.

        Queries, the gradient of what comes of them, and their own gradient, before and after; keys
        and values, and their gradients, before and after.
        """
        of_queries = self.heads * (3 * self.key_size + self.value_size)
        of_keys = 3 * self.key_heads * (self.key_size + self.value_size)
        return (of_queries + of_keys) * self.number_size


@dataclass(frozen=True)
class ChunkCosts:
    """What a stage needs for a chunk; in bytes.

    The plan of a model and `num_sequence_chunks="auto"` reckon with the same figures, those here.

    Attributes:
        sections: what its sections take, in order.
        of_pair: for each query and key of a row, in this shard's heads.
        of_token: for each position of a row, what a block of attention takes and makes, in these
            heads.
        keeps: whether forwards keep what their backwards need, up to what a chunk needs.
        is_loss: whether the last section is the loss, whose backward follows its forward at once.
    """

    sections: Sequence[SectionSizes] = ()
    of_pair: int = 0
    of_token: int = 0
    keeps: bool = True
    is_loss: bool = True

    @classmethod
    def of(
        cls,
        sections: Sequence[SectionSizes],
        attention: Iterable[HeadSizes],
        keeps: bool,
        is_loss: bool = True,
    ) -> ChunkCosts:
        """Those of a stage.

        Args:
            sections, keeps, is_loss: as for `ChunkCosts`.
            attention: what this shard has of each attention layer.
        """
        several = list(attention)
        return cls(
            sections=sections,
            of_pair=max((layer.heads * layer.number_size for layer in several), default=0),
            of_token=max((layer.of_token for layer in several), default=0),
            keeps=keeps,
            is_loss=is_loss,
        )

    def most_kept(self, rows: int, own: int) -> int:
        """The most that forwards keep, where a chunk has so many positions on a rank."""
        made = max((section.made for section in self.sections), default=0)
        return rows * own * 2 * made if self.keeps else 0

    def kept(self, rows: int, length: int, num_chunks: int, num_shards: int) -> int:
        """What forwards keep of a sequence; see `hyparflow.engine.sequence.kept_forwards`."""
        own = _own(length, num_chunks, num_shards)
        sizes = [rows * own * section.kept for section in self.sections]
        sizes = sizes[: len(sizes) - self.is_loss]
        most = self.most_kept(rows, own)
        room = found = max(0, min(most, 2 * most - num_chunks * sum(sizes)))
        for size in reversed(sizes):
            chunks = min(num_chunks, room // size) if size else num_chunks
            room -= chunks * size
            if chunks < num_chunks:
                break
        return found - room

    def of_sections(self, rows: int, own: int) -> int:
        """What the section with most needs for so many positions."""
        most = 0
        for number, section in enumerate(self.sections, 1):
            is_last = self.is_loss and number == len(self.sections)
            at_once = min(own, tile_of(section.largest, rows)) if is_last else own
            most = max(most, rows * at_once * section.working + section.weight)
        return most

    def of_block(self, rows: int, positions: int) -> int:
        """What a block of so many queries, of all shards, and as many keys needs."""
        return rows * (_BLOCKS * positions**2 * self.of_pair + positions * self.of_token)

    def at_a_time(self, rows: int, length: int, num_chunks: int, num_shards: int) -> int:
        """What one chunk needs: sections and blocks of attention take turns."""
        sections = self.of_sections(rows, _own(length, num_chunks, num_shards))
        return max(sections, self.of_block(rows, math.ceil(length / num_chunks)))

    def working_set(self, rows: int, length: int, num_chunks: int, num_shards: int) -> int:
        """What one chunk needs on a shard, and what forwards keep besides."""
        given = rows, length, num_chunks, num_shards
        return self.at_a_time(*given) + self.kept(*given)


def tile_of(largest: int, rows: int) -> int:
    """How many positions the last section takes at once.

    Args:
        largest: bytes of its largest tensor for each position of a row.
        rows: of a micro-batch.
    """
    return max(1, _TILE // max(1, largest * rows))


def least_chunks(costs: ChunkCosts, rows: int, length: int, num_shards: int, limit: int) -> int:
    """The fewest chunks of which each fits into `limit` bytes, if they need not be too short.

    Args:
        costs: what a chunk needs.
        rows: of a micro-batch.
        length: of sequences.
        num_shards: ranks that share each.
        limit: bytes that may be taken.
    """
    most = max(1, length // max(SHORTEST, num_shards))
    for count in range(1, most):
        if costs.working_set(rows, length, count, num_shards) <= limit:
            return count
    return most


def _own(length: int, num_chunks: int, num_shards: int) -> int:
    """The positions that a shard has of a chunk, at most."""
    return math.ceil(math.ceil(length / num_chunks) / num_shards)
