"""Rows on their way to the ranks of their experts, and back.

Two all-to-alls for each mixture of experts (Lepikhin et al., "GShard", arXiv 2006.16668, section
3.2), and two for its gradients. How many rows each expert gets travels in front of them, so counts
need no exchange of their own; and nothing is filled up to a fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyparflow.comm.communicator import Communicator

__all__ = ["FROM_EXPERTS", "TO_EXPERTS", "RowExchange"]

TO_EXPERTS = "rows on their way to experts"
FROM_EXPERTS = "rows on their way back from experts"


class RowExchange:
    """Exchanges rows among ranks that share the experts of a layer.

    Args:
        ranks: these ranks.
        experts: how many experts each of them has.
    """

    def __init__(self, ranks: Communicator, experts: Sequence[int]) -> None:
        self._ranks, self._experts = ranks, list(experts)
        self._mine = self._experts[ranks.rank]

    def to_experts(self, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give each rank the rows of its experts, with the number of each expert's.

        Args:
            rows: (n, width), in the order of ranks and of their experts.
            counts: (all experts,) of int32, in that order: how many rows each has.

        Returns:
            The rows of this rank's experts, (m, width), expert by expert, and of each expert rank
            by rank; and how many each rank has sent for each expert, (ranks, experts), of int32.
        """
        heads = np.split(counts, np.cumsum(self._experts)[:-1])
        parts = self._split(rows, [int(head.sum()) for head in heads])
        pairs = zip(heads, parts, strict=True)
        sent = [np.concatenate([_raw(head), _raw(part)]) for head, part in pairs]
        received = self._ranks.all_to_all_unsized(sent, TO_EXPERTS)
        cut = self._mine * counts.itemsize
        theirs = np.stack([part[:cut].view(counts.dtype) for part in received])
        arrived = np.concatenate([part[cut:] for part in received]).view(rows.dtype)
        return arrived.reshape(-1, rows.shape[1])[self._order(theirs)], theirs

    def to_experts_again(
        self, rows: np.ndarray, counts: np.ndarray, theirs: np.ndarray
    ) -> np.ndarray:
        """As `to_experts`, where it is known how many rows come."""
        heads = np.split(counts, np.cumsum(self._experts)[:-1])
        sent = self._split(rows, [int(head.sum()) for head in heads])
        received = self._exchanged(sent, theirs.sum(1), rows, TO_EXPERTS)
        return np.concatenate(received)[self._order(theirs)]

    def from_experts(self, rows: np.ndarray, counts: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Give rows back to where they came from.

        Args:
            rows: as many as `to_experts` returned, in the same order.
            counts: what it was given.
            theirs: what it returned with the rows.

        Returns:
            As many rows as it was given, in the same order.
        """
        by_rank = np.empty_like(rows)
        by_rank[self._order(theirs)] = rows
        sent = self._split(by_rank, theirs.sum(1).tolist())
        heads = np.split(counts, np.cumsum(self._experts)[:-1])
        sizes = np.array([head.sum() for head in heads])
        return np.concatenate(self._exchanged(sent, sizes, rows, FROM_EXPERTS))

    def _exchanged(
        self, sent: Sequence[np.ndarray], sizes: np.ndarray, like: np.ndarray, what: str
    ) -> list[np.ndarray]:
        received = [np.empty((int(size), like.shape[1]), like.dtype) for size in sizes]
        self._ranks.all_to_all([np.ascontiguousarray(part) for part in sent], received, what)
        return received

    def _split(self, rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        return np.split(rows, np.cumsum(sizes)[:-1])

    def _order(self, theirs: np.ndarray) -> np.ndarray:
        """The places, among rows in the order of ranks, of rows in the order of experts."""
        experts = np.tile(np.arange(self._mine), len(theirs))
        return np.argsort(np.repeat(experts, theirs.reshape(-1)), kind="stable")


def _raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
