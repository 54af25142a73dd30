"""In how many chunks a sequence fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BLOCKS", "SHORTEST", "TILE", "ChunkCosts", "least_chunks"]

SHORTEST = 512  # positions of a chunk: calls of shorter ones take longer than what they compute
TILE = 1 << 25  # bytes that the largest tensor of the last section may have
BLOCKS = 4  # tensors of the size of a block of scores that exist at the same time


@dataclass(frozen=True)
class ChunkCosts:
    """What a stage needs for a chunk; in bytes.

    Attributes:
        of_position: for each position of a row in the largest section, forward and backward.
        of_pair: for each query and key of a row, in this shard's heads.
        keeps: whether forwards keep what their backwards need, up to what a chunk needs.
    """

    of_position: int
    of_pair: int
    keeps: bool = True

    def kept(self, rows: int, own: int) -> int:
        """The most that forwards keep, where a chunk has so many positions on a rank."""
        return rows * own * self.of_position if self.keeps else 0

    def working_set(self, rows: int, positions: int, num_shards: int) -> int:
        """What a chunk of so many positions, of all shards, needs on one of them."""
        own = -(-positions // num_shards)
        needed = rows * (own * self.of_position + BLOCKS * positions**2 * self.of_pair)
        return needed + self.kept(rows, own)


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
        if costs.working_set(rows, -(-length // count), num_shards) <= limit:
            return count
    return most
